#include "app/plan/work.h"

#include "model/precision.h"

namespace chaski {
namespace {

double bytes_of(DType type) {
  return static_cast<double>(size_of(type));
}

TensorTypes types_in(const TrainConfig& config) {
  return types_of(precision_of(config));
}

// Products of a block's matrices with one token: multiply-adds of a forward pass.
double matrix_weights(const LlamaConfig& model) {
  return static_cast<double>(model.num_layer_parameters() - 2 * model.hidden_size);
}

// Multiply-adds of a token with the gate, the up or the down projection of so many channels.
double projection_of(const LlamaConfig& model, std::int64_t channels) {
  return static_cast<double>(model.hidden_size) * static_cast<double>(channels);
}

// Multiply-adds of queries with keys for one token and block: the causal half.
double score_products(const LlamaConfig& model, std::int64_t sequence_length) {
  return static_cast<double>(model.query_size()) * 0.5 * static_cast<double>(sequence_length + 1);
}

// Elements that the ops between the products read and write for one token of a block.
struct BlockTraffic {
  BlockTraffic(const LlamaConfig& model, bool skips) {
    const auto hidden = static_cast<double>(model.hidden_size);
    const auto ffn = static_cast<double>(model.intermediate_size);
    const auto rotated = 2.0 * static_cast<double>(model.query_size() + model.kv_size());
    norms_forward = 2 * 4 * hidden + rotated;
    // MoC reads, instead of gate and up, of which it writes the kept ones, those. Where it skips
    // the other channels only the gates are of all.
    const auto kept = 2.0 * static_cast<double>(model.moc ? model.moc->keep : 0);
    swiglu_forward = (skips ? 1 : 3) * ffn + kept;
    // SwiGLU reads gate, up and a gradient and writes two gradients and the product; the norms are
    // recomputed, then read three tensors and write one.
    const double of_all = skips ? 0 : model.moc ? 4 : 6;
    backward = of_all * ffn + kept + 2 * (2 + 4) * hidden + rotated;
  }
  double norms_forward;
  double swiglu_forward;
  double backward;
};

// Adds `factor` operations for each multiply-add with all matrices of a block but with `left_out`
// of the FFN's three, of which, if it skips channels, `whole` are of all of them.
void add_products(const LlamaConfig& model, bool skips, double factor, int left_out, int whole,
                  Work& work) {
  const double of_all = projection_of(model, model.intermediate_size);
  work.gemm_flops += factor * (matrix_weights(model) - 3 * of_all);
  work.gemm_flops += factor * (skips ? whole : 3 - left_out) * of_all;
  if (!skips) return;
  work.channel_flops += factor * (3 - left_out - whole) * projection_of(model, model.moc->keep);
}

Work forward_of_blocks(const TrainConfig& config, bool skips, bool again) {
  const LlamaConfig& model = config.model.llama;
  const BlockTraffic traffic(model, skips);
  Work work;
  // Recomputation ends before the down projection; that of MoC selects again.
  add_products(model, skips, 2.0, again ? 1 : 0, 1, work);
  work.attention_forward_flops = 4.0 * score_products(model, config.data.sequence_length);
  work.traffic_bytes =
      bytes_of(types_in(config).compute) *
      (traffic.norms_forward + (again && !model.moc ? 0.0 : traffic.swiglu_forward));
  return work;
}

Work backward_of_blocks(const TrainConfig& config, bool skips) {
  const LlamaConfig& model = config.model.llama;
  Work work;
  add_products(model, skips, 4.0, 0, 0, work);
  // Scores are computed again: five products instead of four.
  work.attention_backward_flops = 10.0 * score_products(model, config.data.sequence_length);
  work.traffic_bytes = bytes_of(types_in(config).compute) * BlockTraffic(model, skips).backward;
  return work;
}

// Norm, logits, loss and their backward pass, for one token.
Work head(const TrainConfig& config) {
  const LlamaConfig& model = config.model.llama;
  const auto hidden = static_cast<double>(model.hidden_size);
  const auto vocab = static_cast<double>(model.vocab_size);
  Work work;
  work.gemm_flops = 6.0 * hidden * vocab;
  const double computed = bytes_of(types_in(config).compute);
  // Logits are fp32 everywhere: read twice; their gradient is written.
  work.traffic_bytes =
      computed * (4 * hidden + vocab + 5 * hidden) + 2 * bytes_of(DType::f32) * vocab;
  return work;
}

// What a replica sends to another for the sum of their gradients.
std::int64_t gradient_bytes(const TrainConfig& config, const RankMemory& from, const RankMemory& to,
                            std::int64_t num_replicas) {
  const std::int64_t gradients = from.stage.bytes(MemoryCategory::gradients);
  if (!is_on_gpu(config)) return 2 * gradients / num_replicas;
  const bool is_next = to.slot.replica == (from.slot.replica + 1) % num_replicas;
  return is_next ? 2 * gradients * (num_replicas - 1) / num_replicas : 0;
}

}  // namespace

Work& Work::operator+=(const Work& other) {
  gemm_flops += other.gemm_flops;
  channel_flops += other.channel_flops;
  attention_forward_flops += other.attention_forward_flops;
  attention_backward_flops += other.attention_backward_flops;
  traffic_bytes += other.traffic_bytes;
  return *this;
}

Work Work::operator*(double factor) const {
  Work result;
  result.gemm_flops = factor * gemm_flops;
  result.channel_flops = factor * channel_flops;
  result.attention_forward_flops = factor * attention_forward_flops;
  result.attention_backward_flops = factor * attention_backward_flops;
  result.traffic_bytes = factor * traffic_bytes;
  return result;
}

Work StageWork::of_step(std::int64_t micro_batches) const {
  Work work = update;
  work += forward * static_cast<double>(micro_batches);
  work += backward * static_cast<double>(micro_batches);
  return work;
}

StageWork plan_work(const TrainConfig& config, const RankMemory& rank) {
  const LlamaConfig& model = config.model.llama;
  const auto tokens =
      static_cast<double>(config.parallel.micro_batch * config.data.sequence_length);
  const double layers = static_cast<double>(rank.range.num_layers);
  const auto hidden = static_cast<double>(model.hidden_size);
  StageWork work;
  const bool skips = rank.stage.skips_channels;
  work.forward = forward_of_blocks(config, skips, false) * layers;
  work.backward = backward_of_blocks(config, skips) * layers;
  if (config.model.recompute == Recompute::block) {
    work.backward += forward_of_blocks(config, skips, true) * layers;
  }
  if (rank.range.has_embedding) {
    const double computed = bytes_of(types_in(config).compute);
    work.forward.traffic_bytes += computed * 2 * hidden;
    work.backward.traffic_bytes += computed * 3 * hidden;
  }
  if (rank.range.has_head) work.forward += head(config);
  work.forward = work.forward * tokens;
  work.backward = work.backward * tokens;
  // A gradient is zeroed, read for its norm, and read again; weight and moments are read and
  // written, and where ops read a rounded copy, that is written.
  const TensorTypes types = types_in(config);
  const double rounded = types.has_master_weights() ? bytes_of(types.compute) : 0.0;
  work.update.traffic_bytes = (3 * bytes_of(types.gradients) + 2 * bytes_of(types.weights) +
                               4 * bytes_of(types.moments) + rounded) *
                              static_cast<double>(rank.stage.num_parameters());
  return work;
}

const char* name_of(LinkPurpose purpose) {
  return purpose == LinkPurpose::gradients ? "gradients" : "pipeline";
}

std::vector<Link> plan_links(const TrainConfig& config, const std::vector<RankMemory>& ranks) {
  const RunLayout layout = resolve_layout(config, static_cast<std::int64_t>(ranks.size()));
  const std::int64_t message = config.parallel.micro_batch * config.data.sequence_length *
                               config.model.llama.hidden_size * size_of(types_in(config).compute);
  std::vector<Link> links;
  for (const RankMemory& from : ranks) {
    for (const RankMemory& to : ranks) {
      const bool same_stage = from.slot.stage == to.slot.stage;
      const int distance = to.slot.stage - from.slot.stage;
      if (same_stage && from.rank != to.rank) {
        const std::int64_t bytes = gradient_bytes(config, from, to, layout.num_replicas);
        if (bytes > 0) links.push_back({from.rank, to.rank, LinkPurpose::gradients, bytes});
      } else if (from.slot.replica == to.slot.replica && (distance == 1 || distance == -1)) {
        links.push_back(
            {from.rank, to.rank, LinkPurpose::pipeline, layout.micro_batches * message});
      }
    }
  }
  return links;
}

}  // namespace chaski
