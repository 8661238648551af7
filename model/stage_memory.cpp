#include "model/stage_memory.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "kernels/attention/attention.h"
#include "kernels/device/rounding.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/moc/moc.h"
#include "kernels/moc/products.h"
#include "kernels/products/matmul.h"
#include "model/parameter.h"

namespace chaski {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
// The least that a workspace takes at a time (kernels/device/device.cpp).
constexpr std::int64_t kSmallestWorkspace = std::int64_t{1} << 20;

std::int64_t floats(std::int64_t count) {
  return charged_bytes(count * kFloat);
}

std::int64_t bytes_of(DType type, std::int64_t count) {
  return charged_bytes(count * size_of(type));
}

// The temporary tensors of a step in the order in which Stage, Block and the ops take them: each
// function returns the most that is in use at a time while its namesake runs.
class WorkspacePlan {
 public:
  WorkspacePlan(Device& device, const LlamaConfig& config, const StageRange& range,
                const StageOptions& options)
      : device_(device),
        config_(config),
        range_(range),
        options_(options),
        tokens_(options.micro_batch * options.sequence_length),
        tile_(ffn_tile(device.backend(), tokens_)) {
    if (config.moc) moc_ = moc_shape(config, options.moc_index);
  }

  std::vector<WorkspacePhase> phases(std::int64_t largest_parameter) const {
    const std::int64_t delta = row_of(config_.hidden_size);
    std::vector<WorkspacePhase> phases;
    phases.push_back({"blocks, forward", delta + block_forward(true)});
    if (range_.has_head) phases.push_back({"head and loss", delta + head()});
    if (options_.training) {
      if (options_.recompute == Recompute::block) {
        phases.push_back({"blocks, forward again", block_forward(false)});
      }
      phases.push_back({"feed-forward, backward", feed_forward_backward()});
      phases.push_back({"attention, backward", attention_block_backward()});
      phases.push_back({"gradient norm", sum_workspace_bytes(device_, largest_parameter)});
    }
    std::stable_sort(phases.begin(), phases.end(),
                     [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    return phases;
  }
  bool skips_channels() const { return pays_to_skip(tile_); }

 private:
  // A tensor [T, columns] of what ops compute with.
  std::int64_t row_of(std::int64_t columns) const { return rows_of(tokens_, columns); }
  std::int64_t rows_of(std::int64_t tokens, std::int64_t columns) const {
    return bytes_of(types_of(options_.precision).compute, tokens * columns);
  }

  std::int64_t linear(LinearPass pass, std::int64_t in, std::int64_t out) const {
    return linear_workspace_bytes(device_, pass, tokens_, in, out);
  }
  std::int64_t norm_backward(std::int64_t tokens) const {
    return rmsnorm_backward_workspace_bytes(device_, tokens, config_.hidden_size);
  }
  // The most that something takes for a tile of tokens; the last may have fewer than the others.
  template <typename Bytes>
  std::int64_t of_tiles(const Bytes& bytes) const {
    const std::int64_t last = tokens_ % tile_;
    return std::max(bytes(tile_), last == 0 ? 0 : bytes(last));
  }
  std::int64_t linear_backward(std::int64_t tokens, std::int64_t in, std::int64_t out) const {
    return std::max(linear_workspace_bytes(device_, LinearPass::backward_input, tokens, in, out),
                    linear_workspace_bytes(device_, LinearPass::backward_weight, tokens, in, out));
  }
  std::int64_t attention(AttentionPass pass) const {
    const AttentionShape shape{options_.micro_batch, options_.sequence_length, config_.num_heads,
                               config_.num_kv_heads, config_.head_dim};
    return attention_workspace_bytes(device_, pass, shape, types_of(options_.precision).compute);
  }

  std::int64_t block_forward(bool with_output) const {
    const std::int64_t hidden = config_.hidden_size;
    // The stream that the attention's output is added to, where there is no output to use for it.
    const std::int64_t delta = with_output ? 0 : row_of(hidden);
    const std::int64_t ffn = of_tiles([&](std::int64_t tokens) {
      if (!moc_) return dense_forward(tokens, with_output);
      return kept_for_now(tokens) +
             (pays_to_skip(tokens) ? kept_forward(tokens) : all_forward(tokens, with_output));
    });
    return row_of(hidden) +
           std::max({linear(LinearPass::forward, hidden, config_.qkv_size()),
                     attention(AttentionPass::forward),
                     delta + linear(LinearPass::forward, config_.query_size(), hidden),
                     delta + ffn});
  }

  std::int64_t dense_forward(std::int64_t tokens, bool with_output) const {
    const std::int64_t ffn = config_.intermediate_size;
    const std::int64_t gate_up = options_.training ? 0 : rows_of(tokens, 2 * ffn);
    const std::int64_t first = gate_up_forward(tokens, 2 * ffn);
    if (!with_output) return gate_up + first;
    const bool keeps_product = options_.training && options_.recompute == Recompute::none;
    const std::int64_t product = keeps_product ? 0 : rows_of(tokens, ffn);
    return gate_up + std::max(first, product + down_forward(tokens));
  }

  // Of MoC, where nothing is kept for a backward pass.
  std::int64_t kept_for_now(std::int64_t tokens) const {
    if (options_.training) return 0;
    return 2 * rows_of(tokens, moc_->keep) + bytes_of(DType::u8, tokens * moc_->index_bytes());
  }
  std::int64_t all_forward(std::int64_t tokens, bool with_output) const {
    const std::int64_t ffn = config_.intermediate_size;
    return rows_of(tokens, 2 * ffn) + rows_of(tokens, ffn) +
           std::max({gate_up_forward(tokens, 2 * ffn), moc_workspace_bytes(device_, *moc_, tokens),
                     with_output ? down_forward(tokens) : 0});
  }
  std::int64_t kept_forward(std::int64_t tokens) const {
    const std::int64_t ffn = config_.intermediate_size;
    return rows_of(tokens, ffn) +
           std::max(gate_up_forward(tokens, ffn), moc_products(MocPass::forward, tokens));
  }
  bool pays_to_skip(std::int64_t tokens) const {
    return moc_ && moc_products_pay(device_, *moc_, config_.hidden_size, tokens);
  }
  std::int64_t moc_products(MocPass pass, std::int64_t tokens) const {
    return moc_products_workspace_bytes(device_, pass, *moc_, config_.hidden_size, tokens);
  }
  std::int64_t gate_up_forward(std::int64_t tokens, std::int64_t out) const {
    return linear_workspace_bytes(device_, LinearPass::forward, tokens, config_.hidden_size, out);
  }
  std::int64_t down_forward(std::int64_t tokens) const {
    return linear_workspace_bytes(device_, LinearPass::forward, tokens, config_.intermediate_size,
                                  config_.hidden_size);
  }

  std::int64_t feed_forward_backward() const {
    return of_tiles([&](std::int64_t tokens) {
      const std::int64_t hidden = rows_of(tokens, config_.hidden_size);
      if (!pays_to_skip(tokens)) return all_backward(tokens);
      return hidden + std::max(moc_products(MocPass::backward, tokens), norm_backward(tokens));
    });
  }
  std::int64_t all_backward(std::int64_t tokens) const {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t ffn = config_.intermediate_size;
    const std::int64_t scratch = moc_ ? moc_workspace_bytes(device_, *moc_, tokens) : 0;
    return (moc_ ? rows_of(tokens, 2 * ffn) : 0) +
           std::max(rows_of(tokens, ffn) + std::max(linear_backward(tokens, ffn, hidden), scratch),
                    rows_of(tokens, hidden) +
                        std::max(linear_backward(tokens, hidden, 2 * ffn), norm_backward(tokens)));
  }

  std::int64_t attention_block_backward() const {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t query = config_.query_size();
    const std::int64_t qkv = config_.qkv_size();
    return row_of(qkv) + std::max(row_of(query) + std::max(linear_backward(tokens_, query, hidden),
                                                           attention(AttentionPass::backward)),
                                  row_of(hidden) + std::max(linear_backward(tokens_, hidden, qkv),
                                                            norm_backward(tokens_)));
  }

  std::int64_t head() const {
    const HeadLossSize size{.num_tokens = tokens_,
                            .hidden_size = config_.hidden_size,
                            .vocab_size = config_.vocab_size,
                            .type = types_of(options_.precision).compute};
    const std::int64_t loss = head_loss_workspace_bytes(device_, size, options_.training);
    const std::int64_t normed = row_of(config_.hidden_size) + floats(tokens_);
    if (!options_.training) return normed + loss;
    return normed + row_of(config_.hidden_size) + std::max(loss, norm_backward(tokens_));
  }

  Device& device_;
  const LlamaConfig& config_;
  const StageRange& range_;
  const StageOptions& options_;
  std::int64_t tokens_;
  std::int64_t tile_;
  std::optional<MocShape> moc_;
};

// Sizes of the parameters, and of a buffer that holds them all (ParameterSet::place).
class ParameterPlan {
 public:
  ParameterPlan(const LlamaConfig& config, const StageRange& range, const TensorTypes& types)
      : alignment_(ParameterSet::group_alignment(types)) {
    const std::int64_t hidden = config.hidden_size;
    const std::int64_t table = config.vocab_size * hidden;
    if (range.has_embedding) add({table});
    for (std::int64_t layer = 0; layer < range.num_layers; ++layer) {
      add({hidden});
      add({config.query_size() * hidden, config.kv_size() * hidden, config.kv_size() * hidden});
      add({hidden * config.query_size()});
      add({hidden});
      add({config.intermediate_size * hidden, config.intermediate_size * hidden});
      add({hidden * config.intermediate_size});
    }
    if (range.has_head) {
      add({hidden});
      if (!config.tie_embeddings) add({table});
    }
  }

  std::vector<std::int64_t> sizes;
  std::int64_t buffer_elements = 0;

 private:
  // A group of adjacent parameters; the next one begins on a cache line.
  void add(std::initializer_list<std::int64_t> group) {
    sizes.insert(sizes.end(), group);
    const std::int64_t elements = std::accumulate(group.begin(), group.end(), std::int64_t{0});
    buffer_elements += round_up(elements, alignment_);
  }

  std::int64_t alignment_;  // as the parameters' groups
};

// Tensors of a block that keep something of its FFN.
struct FfnPart {
  const char* kind;
  std::int64_t tensors;
  std::int64_t bytes_per_token;  // of each
};

std::vector<FfnPart> ffn_parts(const LlamaConfig& config, const StageOptions& options) {
  const std::int64_t element = size_of(types_of(options.precision).compute);
  const bool keeps_all = options.recompute == Recompute::none;
  if (!config.moc) {
    const std::int64_t row = config.intermediate_size * element;
    std::vector<FfnPart> parts{{"gate and up projections", 1, 2 * row}};
    if (keeps_all) parts.push_back({"SiLU and its product", 2, row});
    return parts;
  }
  const MocShape shape = moc_shape(config, options.moc_index);
  const std::int64_t row = shape.keep * element;
  std::vector<FfnPart> parts{{"kept gates and up projections", 2, row},
                             {"indices of kept channels", 1, shape.index_bytes()}};
  if (keeps_all) parts.push_back({"kept SiLU and product", 2, row});
  return parts;
}

std::vector<PlannedMemory> plan_activations(const LlamaConfig& config, const StageRange& range,
                                            const StageOptions& options) {
  const std::int64_t tokens = options.micro_batch * options.sequence_length;
  const std::int64_t stashes = options.training ? options.micro_batches_in_flight : 1;
  const bool keeps_blocks = options.training && options.recompute != Recompute::block;
  const std::int64_t blocks = stashes * range.num_layers;
  const std::int64_t whole = keeps_blocks ? blocks : 1;
  const auto computed = [&](std::int64_t count) {
    return bytes_of(types_of(options.precision).compute, count);
  };
  const std::int64_t hidden = computed(tokens * config.hidden_size);
  std::vector<PlannedMemory> parts;
  const auto add = [&](const char* kind, std::int64_t bytes) {
    if (bytes > 0) parts.push_back({kind, MemoryCategory::activations, bytes});
  };
  add("block inputs", (options.training ? blocks : 1) * hidden);
  add("query, key, value", whole * computed(tokens * config.qkv_size()));
  add("attention output", whole * computed(tokens * config.query_size()));
  add("attention log-sum-exp", whole * floats(tokens * config.num_heads));
  add("residual after attention", options.training ? whole * hidden : 0);
  if (options.training) {
    for (const FfnPart& part : ffn_parts(config, options)) {
      add(part.kind, whole * part.tensors * charged_bytes(tokens * part.bytes_per_token));
    }
  }
  add("norm scales", whole * 2 * floats(tokens));
  if (options.training && config.moc) {
    add("counts of selected channels",
        bytes_of(DType::i32, range.num_layers * (config.intermediate_size + 2)));
  }
  add("positions", stashes * bytes_of(DType::i32, tokens));
  if (range.has_head) {
    add("targets", stashes * bytes_of(DType::i32, tokens));
    add("gradient of the last block", options.training ? stashes * hidden : 0);
    add("token losses and their sum", floats(tokens) + bytes_of(DType::f64, 2));
  } else {
    add("stage output", stashes * hidden);
    add("gradient of the input", options.training ? hidden : 0);
  }
  return parts;
}

}  // namespace

std::int64_t StageMemory::bytes(MemoryCategory category) const {
  std::int64_t total = 0;
  for (const PlannedMemory& part : parts) total += part.category == category ? part.bytes : 0;
  return category == MemoryCategory::workspace ? workspace_bytes() : total;
}

std::int64_t StageMemory::workspace_bytes() const {
  return std::max(kSmallestWorkspace, phases.front().bytes);
}

std::int64_t StageMemory::num_parameters() const {
  return std::accumulate(parameters.begin(), parameters.end(), std::int64_t{0});
}

StageMemory plan_stage_memory(Device& device, const LlamaConfig& config, const StageRange& range,
                              const StageOptions& options) {
  if (config.tie_embeddings && range.has_embedding != range.has_head) {
    throw std::invalid_argument(
        "model.tie_embeddings = true is not allowed with parallel.pipeline > 1: the embedding and "
        "the head must be on one stage");
  }
  StageMemory memory;
  const TensorTypes types = types_of(options.precision);
  const ParameterPlan parameters(config, range, types);
  const auto parameters_as = [&](DType type) { return bytes_of(type, parameters.buffer_elements); };
  memory.parts.push_back({types.has_master_weights() ? "master weights" : "weights",
                          MemoryCategory::weights, parameters_as(types.weights)});
  if (types.has_master_weights()) {
    memory.parts.push_back(
        {"rounded weights", MemoryCategory::weights, parameters_as(types.compute)});
  }
  memory.parts.push_back({"rotary table", MemoryCategory::weights,
                          floats(config.max_position_embeddings * config.head_dim)});
  if (options.training) {
    memory.parts.push_back(
        {"gradients", MemoryCategory::gradients, parameters_as(types.gradients)});
  }
  for (PlannedMemory& part : plan_activations(config, range, options)) {
    memory.parts.push_back(std::move(part));
  }
  // With whole blocks made again nothing is kept from one pass to the other.
  const bool keeps = options.recompute != Recompute::block;
  for (const FfnPart& part : keeps ? ffn_parts(config, options) : std::vector<FfnPart>()) {
    memory.ffn_bytes_per_token += part.tensors * part.bytes_per_token;
  }
  const std::int64_t largest = *std::max_element(parameters.sizes.begin(), parameters.sizes.end());
  const WorkspacePlan workspace(device, config, range, options);
  memory.phases = workspace.phases(largest);
  memory.skips_channels = workspace.skips_channels();
  memory.parameters = std::move(parameters.sizes);
  return memory;
}

}  // namespace chaski
