#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <fmt/core.h>
#include <numeric>
#include <stdexcept>

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/rmsnorm.h"

namespace chaski {

Decoder::Decoder(Device& device, const Stage& stage, std::int64_t capacity)
    : device_(device), stage_(stage), capacity_(capacity) {
  const LlamaConfig& config = stage.config();
  if (!stage.range().has_embedding || !stage.range().has_head) {
    throw std::logic_error("decoding needs a stage that holds the whole model");
  }
  if (capacity < 1 || capacity > config.max_position_embeddings) {
    throw std::invalid_argument(
        fmt::format("{} tokens do not fit the model: it has positions for 1 to {}", capacity,
                    config.max_position_embeddings));
  }
  const auto allocate = [&] {
    buffers_.push_back(
        device.allocate(DType::f32, {capacity, config.kv_size()}, MemoryCategory::activations));
    return buffers_.back().tensor();
  };
  for (std::size_t i = 0; i < stage.blocks().size(); ++i) {
    KeyValueCache cache;
    cache.keys = allocate();
    cache.values = allocate();
    caches_.push_back(cache);
  }
}

Tensor Decoder::feed(std::span<const std::int32_t> tokens, bool all_logits) {
  const LlamaConfig& config = stage_.config();
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count < 1 || position_ + count > capacity_) {
    throw std::invalid_argument(
        fmt::format("{} tokens after {} do not fit a cache of {}", count, position_, capacity_));
  }
  Workspace::Frame frame(device_);
  const Tensor ids = frame.tensor(DType::i32, {count});
  copy_from_host(tokens.data(), ids);
  const Tensor residual = frame.f32({count, config.hidden_size});
  embedding_forward(stage_.embedding_weight(), ids, residual);
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    stage_.blocks()[i].decode(position_, stage_.rotary(), caches_[i], residual);
  }
  position_ += count;

  const std::int64_t wanted = all_logits ? count : 1;
  const Tensor last = residual.rows(count - wanted, wanted);
  rmsnorm_forward(last, stage_.final_norm_weight(), static_cast<float>(config.rms_norm_eps), last,
                  {});
  if (logits_.empty() || logits_.tensor().dim(0) < wanted) {
    logits_.release();
    logits_ =
        device_.allocate(DType::f32, {wanted, config.vocab_size}, MemoryCategory::activations);
  }
  const Tensor logits = logits_.tensor().rows(0, wanted);
  linear_forward(last, stage_.head_weight(), logits);
  return logits;
}

void SamplingOptions::validate() const {
  if (!(temperature >= 0.0)) {
    throw std::invalid_argument(
        fmt::format("--temperature {} is not allowed: must be 0 or above", temperature));
  }
  if (top_k < 0) {
    throw std::invalid_argument(
        fmt::format("--top-k {} is not allowed: must be 0 or above", top_k));
  }
  if (!(top_p > 0.0 && top_p <= 1.0)) {
    throw std::invalid_argument(
        fmt::format("--top-p {} is not allowed: must be above 0, at most 1", top_p));
  }
}

std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                          double uniform) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_likely = [&](std::int32_t a, std::int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (options.temperature == 0.0) return *std::min_element(order.begin(), order.end(), more_likely);
  std::size_t kept = order.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options.top_k));
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), more_likely);

  std::vector<double> weights(kept);
  double total = 0.0;
  for (std::size_t i = 0; i < kept; ++i) {
    weights[i] =
        std::exp((static_cast<double>(logits[order[i]]) - logits[order[0]]) / options.temperature);
    total += weights[i];
  }
  double nucleus = 0.0;
  std::size_t candidates = 0;
  while (candidates < kept && (candidates == 0 || nucleus < options.top_p * total)) {
    nucleus += weights[candidates++];
  }
  double remaining = uniform * nucleus;
  for (std::size_t i = 0; i < candidates; ++i) {
    remaining -= weights[i];
    if (remaining < 0.0) return order[i];
  }
  return order[candidates - 1];
}

}  // namespace chaski
