#include "model/stage.h"

#include <algorithm>
#include <bit>
#include <fmt/core.h>
#include <stdexcept>

#include "kernels/attention/rotary.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/embedding.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/loss/cross_entropy.h"

namespace chaski {
namespace {

constexpr const char* kForwardPhase = "blocks, forward";
// Of memory that is allocated in two places.
constexpr const char* kBlockInputs = "block inputs";
constexpr const char* kNormScales = "norm scales";

}  // namespace

const char* name_of(Recompute recompute) {
  switch (recompute) {
    case Recompute::none:
      return "none";
    case Recompute::elementwise:
      return "elementwise";
    case Recompute::block:
      return "block";
  }
  return "unknown";
}

StageRange stage_range(const LlamaConfig& config, std::int64_t stage, std::int64_t num_stages) {
  if (num_stages < 1 || num_stages > config.num_layers) {
    throw std::invalid_argument(
        fmt::format("parallel.pipeline = {} is not allowed: must lie between 1 and "
                    "model.num_layers = {}",
                    num_stages, config.num_layers));
  }
  const std::int64_t base = config.num_layers / num_stages;
  const std::int64_t extra = config.num_layers % num_stages;
  StageRange range;
  range.first_layer = stage * base + std::min(stage, extra);
  range.num_layers = base + (stage < extra ? 1 : 0);
  range.has_embedding = stage == 0;
  range.has_head = stage == num_stages - 1;
  return range;
}

Stage::Stage(Device& device, const LlamaConfig& config, const StageRange& range,
             const StageOptions& options)
    : device_(device),
      config_(config),
      range_(range),
      options_(options),
      parameters_(device, types_of(options.precision)) {
  if (config.tie_embeddings && range.has_embedding != range.has_head) {
    throw std::invalid_argument(
        "model.tie_embeddings = true is not allowed with parallel.pipeline > 1: the embedding and "
        "the head must be on one stage");
  }
  add_parameters();
  parameters_.allocate();
  for (Block& block : blocks_) block.bind();
  if (options_.training) parameters_.allocate_gradients([](const Parameter&) { return true; });
  rotary_ = device.allocate(DType::f32, {config.max_position_embeddings, config.head_dim},
                            MemoryCategory::weights, "rotary table");
  rotary_table(config.rope_theta, rotary_.tensor());
  allocate_activations();
  if (!device.is_counting()) reserve_workspace();
}

// What a stage like this takes on a device that only counts, at once, not piece by piece in the
// first step: what is not there is missed before it.
void Stage::reserve_workspace() {
  const auto counting = Device::create_counting(device_);
  Stage stage(*counting, config_, range_, options_);
  stage.run_once();
  device_.workspace().reserve(counting->workspace().largest_used());
}

void Stage::run_once() {
  const Shape tokens{options_.micro_batch, options_.sequence_length};
  const Buffer ids = device_.allocate(DType::i32, tokens, MemoryCategory::communication);
  const Buffer neighbour = device_.allocate(type(), {tokens.num_elements(), config_.hidden_size},
                                            MemoryCategory::communication);
  const MicroBatch batch{ids.tensor(), ids.tensor(), {}};
  evaluate(batch, neighbour.tensor());
  if (!options_.training) return;
  forward(0, batch, neighbour.tensor(), 1.0f);
  backward(0, batch, neighbour.tensor(), nullptr);
}

void Stage::add_parameters() {
  if (range_.has_embedding) {
    embedding_ = parameters_.size();
    parameters_.add("model.embed_tokens.weight", ParameterKind::embedding, -1,
                    {config_.vocab_size, config_.hidden_size});
  }
  blocks_.reserve(range_.num_layers);
  for (std::int64_t i = 0; i < range_.num_layers; ++i) {
    blocks_.emplace_back(config_, range_.first_layer + i, options_.moc_index, parameters_);
  }
  if (range_.has_head) {
    final_norm_ = parameters_.size();
    parameters_.add("model.norm.weight", ParameterKind::norm, -1, {config_.hidden_size});
    head_ = config_.tie_embeddings ? embedding_ : parameters_.size();
    if (!config_.tie_embeddings) {
      parameters_.add("lm_head.weight", ParameterKind::head, -1,
                      {config_.vocab_size, config_.hidden_size});
    }
  }
}

Tensor Stage::allocate_activation(const char* purpose, DType type, Shape shape) {
  activation_buffers_.push_back(
      device_.allocate(type, shape, MemoryCategory::activations, purpose));
  return activation_buffers_.back().tensor();
}

BlockActivations Stage::allocate_block() {
  const std::int64_t tokens = options_.micro_batch * options_.sequence_length;
  BlockActivations kept;
  kept.input = allocate_activation(kBlockInputs, {tokens, config_.hidden_size});
  kept.qkv = allocate_activation("query, key, value", {tokens, config_.qkv_size()});
  kept.attention = allocate_activation("attention output", {tokens, config_.query_size()});
  kept.log_sum_exp =
      allocate_activation("attention log-sum-exp", DType::f32, {tokens * config_.num_heads});
  kept.middle = options_.training
                    ? allocate_activation("residual after attention", {tokens, config_.hidden_size})
                    : kept.input;
  kept.attention_inverse_rms = allocate_activation(kNormScales, DType::f32, {tokens});
  kept.ffn = allocate_ffn();
  return kept;
}

FfnActivations Stage::allocate_ffn() {
  const std::int64_t tokens = options_.micro_batch * options_.sequence_length;
  const bool keeps_all = options_.recompute == Recompute::none;
  FfnActivations kept;
  kept.inverse_rms = allocate_activation(kNormScales, DType::f32, {tokens});
  if (!options_.training) return kept;
  if (!config_.moc) {
    kept.gate_up =
        allocate_activation("gate and up projections", {tokens, 2 * config_.intermediate_size});
    if (!keeps_all) return kept;
    constexpr const char* kElementwise = "SiLU and its product";
    kept.silu = allocate_activation(kElementwise, {tokens, config_.intermediate_size});
    kept.product = allocate_activation(kElementwise, {tokens, config_.intermediate_size});
    return kept;
  }
  const MocShape shape = moc_shape(config_, options_.moc_index);
  constexpr const char* kProjections = "kept gates and up projections";
  kept.moc.gate = allocate_activation(kProjections, {tokens, shape.keep});
  kept.moc.up = allocate_activation(kProjections, {tokens, shape.keep});
  kept.moc.index =
      allocate_activation("indices of kept channels", DType::u8, {tokens, shape.index_bytes()});
  if (!keeps_all) return kept;
  constexpr const char* kElementwise = "kept SiLU and product";
  kept.moc.silu = allocate_activation(kElementwise, {tokens, shape.keep});
  kept.moc.product = allocate_activation(kElementwise, {tokens, shape.keep});
  return kept;
}

void Stage::allocate_activations() {
  const std::int64_t tokens = options_.micro_batch * options_.sequence_length;
  const bool keeps_all = options_.training && options_.recompute != Recompute::block;
  const std::int64_t num_stashes = options_.training ? options_.micro_batches_in_flight : 1;
  stashes_.resize(num_stashes);
  const BlockActivations first = allocate_block();
  for (Stash& stash : stashes_) {
    for (std::int64_t i = 0; i < range_.num_layers; ++i) {
      const bool is_first = stash.blocks.empty() && &stash == &stashes_.front();
      stash.blocks.push_back(keeps_all && !is_first ? allocate_block() : first);
      if (!keeps_all && options_.training && !is_first) {
        stash.blocks.back().input =
            allocate_activation(kBlockInputs, {tokens, config_.hidden_size});
      }
    }
    stash.positions = allocate_activation("positions", DType::i32, {tokens});
    stash.forward.resize(range_.num_layers);
    stash.backward.resize(range_.num_layers);
    if (!range_.has_head) {
      stash.output = allocate_activation("stage output", {tokens, config_.hidden_size});
      continue;
    }
    stash.targets = allocate_activation("targets", DType::i32, {tokens});
    if (options_.training) {
      stash.residual_gradient =
          allocate_activation("gradient of the last block", {tokens, config_.hidden_size});
    }
  }
  // Evaluation reuses the first block's buffers for every block; the residual stream is updated in
  // place.
  BlockActivations transient = first;
  transient.middle = transient.input;
  evaluation_.blocks.assign(range_.num_layers, transient);
  evaluation_.forward.resize(range_.num_layers);
  evaluation_.positions = stashes_.front().positions;
  evaluation_.targets = stashes_.front().targets;
  evaluation_.output = stashes_.front().output;
  if (options_.training && !range_.has_head) {
    input_gradient_ = allocate_activation("gradient of the input", {tokens, config_.hidden_size});
  }
  if (options_.training && config_.moc) {
    channel_counts_ = allocate_activation("counts of selected channels", DType::i32,
                                          {range_.num_layers, config_.intermediate_size + 2});
  }
  if (range_.has_head) {
    constexpr const char* kLosses = "token losses and their sum";
    losses_ = allocate_activation(kLosses, DType::f32, {tokens});
    loss_totals_ = allocate_activation(kLosses, DType::f64, {2});
  }
}

void Stage::set_micro_batches_in_flight(std::int64_t count) {
  if (count == options_.micro_batches_in_flight) return;
  options_.micro_batches_in_flight = count;
  stashes_.clear();
  evaluation_ = {};
  activation_buffers_.clear();
  allocate_activations();
}

void Stage::initialize(std::uint64_t seed) {
  for (Parameter& parameter : parameters_) {
    if (parameter.kind == ParameterKind::norm) {
      fill(parameter.value, 1.0f);
    } else {
      fill_normal(parameter.value, 0.0f, static_cast<float>(config_.initializer_range), seed,
                  random_stream_of(parameter.name));
    }
  }
  parameters_.refresh_compute();
}

BlockBatch Stage::block_batch(const MicroBatch& batch, const Stash& stash) const {
  BlockBatch result{batch.tokens.dim(0), batch.tokens.dim(1), {}};
  if (result.num_tokens() > options_.micro_batch * options_.sequence_length ||
      result.sequence_length > config_.max_position_embeddings) {
    throw std::invalid_argument(
        fmt::format("a micro-batch of {} rows of {} tokens does not fit a stage for {} rows of {} "
                    "tokens and {} positions",
                    result.rows, result.sequence_length, options_.micro_batch,
                    options_.sequence_length, config_.max_position_embeddings));
  }
  if (batch.positions) result.positions = stash.positions.rows(0, result.num_tokens());
  return result;
}

void Stage::run_blocks(Stash& stash, const MicroBatch& batch, const Tensor& input,
                       const Tensor& delta, bool counts_channels) {
  const BlockBatch arrangement = block_batch(batch, stash);
  if (arrangement.positions)
    copy(batch.positions.view({arrangement.num_tokens()}), arrangement.positions);
  const std::int64_t tokens = arrangement.num_tokens();
  const Tensor first_input = stash.blocks[0].input.rows(0, tokens);
  if (range_.has_embedding) {
    embedding_forward(embedding_weight(), batch.tokens.view({tokens}), first_input);
  } else {
    copy(input, first_input);
  }
  Tensor residual;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const BlockActivations narrowed = stash.blocks[i].narrowed(tokens);
    const Tensor in_delta = i == 0 ? Tensor() : delta;
    const OpKey key = blocks_[i].key(arrangement, narrowed).add(residual).add(in_delta).add(delta);
    stash.forward[i].run(device_, key, [&] {
      blocks_[i].forward(arrangement, rotary(), residual, in_delta, narrowed, delta);
    });
    if (counts_channels) count_channels(static_cast<std::int64_t>(i), narrowed.ffn.moc);
    residual = narrowed.middle;
  }
}

void Stage::count_channels(std::int64_t layer, const MocKept& kept) const {
  const std::int64_t channels = config_.intermediate_size;
  std::int32_t* counts = channel_counts_.i32() + layer * (channels + 2);
  moc_count(moc_shape(config_, options_.moc_index), kept,
            Tensor(device_, DType::i32, {channels}, counts),
            Tensor(device_, DType::i32, {2}, counts + channels));
}

std::vector<ChannelUse> Stage::take_channel_use() {
  if (!channel_counts_) return {};
  const std::int64_t columns = channel_counts_.dim(1);
  std::vector<std::uint32_t> counts(static_cast<std::size_t>(channel_counts_.num_elements()));
  copy_to_host(channel_counts_, counts.data());
  // Zero is zero in every type.
  fill(Tensor(device_, DType::f32, channel_counts_.shape(), channel_counts_.raw()), 0.0f);
  std::vector<ChannelUse> layers(static_cast<std::size_t>(range_.num_layers));
  auto row = counts.begin();
  for (ChannelUse& layer : layers) {
    layer.counts.assign(row, row + (columns - 2));
    layer.positive = row[columns - 2] | std::uint64_t{row[columns - 1]} << 32;
    row += columns;
  }
  return layers;
}

const Tensor& Stage::head_gradient() const {
  return parameters_[head_].gradient;
}

void Stage::run_head(Stash& stash, const MicroBatch& batch, const Tensor& middle,
                     const Tensor& delta, float gradient_scale) {
  const std::int64_t tokens = middle.dim(0);
  const Tensor targets = stash.targets.rows(0, tokens);
  copy(batch.targets.view({tokens}), targets);
  const bool with_gradient = gradient_scale != 0.0f;
  const Tensor dresidual = with_gradient ? stash.residual_gradient.rows(0, tokens) : Tensor();
  OpKey key;
  key.add(tokens).add(std::bit_cast<std::int32_t>(gradient_scale)).add(targets).add(middle);
  key.add(delta).add(dresidual).add(head_gradient()).add(parameters_[final_norm_].gradient);
  stash.head.run(device_, key,
                 [&] { queue_head(targets, middle, delta, dresidual, gradient_scale); });
}

void Stage::queue_head(const Tensor& targets, const Tensor& middle, const Tensor& delta,
                       const Tensor& dresidual, float gradient_scale) {
  const std::int64_t tokens = middle.dim(0);
  const Tensor& norm_weight = final_norm_weight();
  Workspace::Frame frame(device_, "head and loss");
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});
  const Tensor inverse_rms = frame.f32({tokens});
  // `delta` is read for the last time here and becomes the norm's input.
  add_rmsnorm_forward(middle, delta, norm_weight, static_cast<float>(config_.rms_norm_eps), delta,
                      normed, inverse_rms);
  HeadLoss head;
  head.hidden = normed;
  head.weight = head_weight();
  head.targets = targets;
  head.losses = losses_.rows(0, tokens);
  if (dresidual) {
    const Tensor dnormed = frame.tensor(type(), {tokens, config_.hidden_size});
    head_loss_forward_backward(head, gradient_scale, dnormed, head_gradient());
    fill(dresidual, 0.0f);
    rmsnorm_backward(delta, norm_weight, inverse_rms, dnormed, dresidual,
                     parameters_[final_norm_].gradient);
  } else {
    head_loss_forward(head);
  }
  add_loss_totals(head.losses, targets, loss_totals_);
}

LossTotals Stage::take_loss_totals() {
  if (loss_totals_) return chaski::take_loss_totals(loss_totals_);
  // Dry, the stage that has the head is not asked: the loss of a step is a number all the same.
  return {.sum = 0.0, .num_targets = device_.is_counting() ? 1 : 0};
}

Tensor Stage::run_forward(Stash& stash, const MicroBatch& batch, const Tensor& input,
                          float gradient_scale, bool counts_channels) {
  const std::int64_t tokens = batch.tokens.num_elements();
  Workspace::Frame frame(device_, kForwardPhase);
  const Tensor delta = frame.tensor(type(), {tokens, config_.hidden_size});
  run_blocks(stash, batch, input, delta, counts_channels);
  const Tensor middle = stash.blocks.back().middle.rows(0, tokens);
  if (range_.has_head) {
    run_head(stash, batch, middle, delta, gradient_scale);
    return {};
  }
  const Tensor output = stash.output.rows(0, tokens);
  add(middle, delta, output);
  return output;
}

Tensor Stage::forward(std::int64_t stash, const MicroBatch& batch, const Tensor& input,
                      float gradient_scale) {
  return run_forward(stashes_[stash], batch, input, gradient_scale, !channel_counts_.empty());
}

Tensor Stage::evaluate(const MicroBatch& batch, const Tensor& input) {
  return run_forward(evaluation_, batch, input, 0.0f, false);
}

Tensor Stage::backward(std::int64_t stash, const MicroBatch& batch, const Tensor& output_gradient,
                       GradientListener* listener) {
  Stash& kept = stashes_[stash];
  const BlockBatch arrangement = block_batch(batch, kept);
  const std::int64_t tokens = arrangement.num_tokens();
  Tensor dresidual;
  if (range_.has_head) {
    dresidual = kept.residual_gradient.rows(0, tokens);
    if (listener != nullptr) {
      // A tied head also gets the embedding's gradient, at the very end.
      listener->gradients_ready(final_norm_, config_.tie_embeddings ? 1 : 2);
    }
  } else {
    dresidual = input_gradient_.rows(0, tokens);
    copy(output_gradient, dresidual);
  }
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    const BlockActivations narrowed = kept.blocks[i].narrowed(tokens);
    const OpKey key = blocks_[i].key(arrangement, narrowed).add(dresidual);
    kept.backward[i].run(device_, key, [&] {
      if (options_.recompute == Recompute::block) {
        blocks_[i].forward(arrangement, rotary(), {}, {}, narrowed, {});
      }
      blocks_[i].backward(arrangement, rotary(), narrowed, dresidual);
    });
    if (listener != nullptr) {
      listener->gradients_ready(blocks_[i].first_parameter(), blocks_[i].num_parameters());
    }
  }
  if (!range_.has_embedding) return dresidual;
  if (const Tensor& gradient = parameters_[embedding_].gradient) {
    embedding_backward(dresidual, batch.tokens.view({tokens}), gradient);
  }
  if (listener != nullptr) listener->gradients_ready(embedding_, 1);
  return {};
}

std::int64_t Stage::ffn_bytes_per_token() const {
  if (!options_.training || options_.recompute == Recompute::block) return 0;
  const FfnActivations kept = stashes_.front().blocks.front().ffn.rows(0, 1);
  std::int64_t bytes = 0;
  for (const Tensor* tensor : {&kept.gate_up, &kept.silu, &kept.product, &kept.moc.gate,
                               &kept.moc.up, &kept.moc.silu, &kept.moc.product, &kept.moc.index}) {
    bytes += tensor->num_bytes();
  }
  return bytes;
}

const Tensor& Stage::embedding_weight() const {
  return parameters_[embedding_].compute;
}
const Tensor& Stage::final_norm_weight() const {
  return parameters_[final_norm_].compute;
}
const Tensor& Stage::head_weight() const {
  return parameters_[head_].compute;
}

}  // namespace chaski
