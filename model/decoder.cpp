#include "model/decoder.h"

#include <algorithm>
#include <fmt/core.h>
#include <numeric>
#include <stdexcept>

#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/embedding.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/products/matmul.h"

namespace chaski {

Decoder::Decoder(Device& device, const Stage& stage, std::int64_t capacity,
                 std::int64_t num_sequences)
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
  if (num_sequences < 1)
    throw std::invalid_argument(
        fmt::format("{} sequences cannot be decoded: must be 1 or more", num_sequences));
  positions_.resize(static_cast<std::size_t>(num_sequences));
  const auto allocate = [&] {
    buffers_.push_back(
        device.allocate(DType::f32, {capacity, config.kv_size()}, MemoryCategory::activations));
    return buffers_.back().tensor();
  };
  for (const Block& block : stage.blocks()) {
    Layer layer;
    for (std::int64_t i = 0; i < num_sequences; ++i) {
      KeyValueCache cache;
      cache.keys = allocate();
      cache.values = allocate();
      layer.caches.push_back(cache);
    }
    layer.ffn = block.ffn().allocate_decoding(buffers_);
    layers_.push_back(std::move(layer));
  }
}

void Decoder::rewind(std::int64_t position, std::int64_t sequence) {
  std::int64_t& mine = positions_.at(sequence);
  if (position < 0 || position > mine)
    throw std::invalid_argument(
        fmt::format("cannot go back to position {}: {} tokens were fed", position, mine));
  mine = position;
}

void Decoder::refresh() {
  const std::int64_t version = stage_.parameters().version();
  if (version == weights_version_) return;
  for (std::size_t i = 0; i < layers_.size(); ++i) stage_.blocks()[i].ffn().refresh(layers_[i].ffn);
  weights_version_ = version;
}

Tensor Decoder::feed(std::span<const std::int32_t> tokens, bool all_logits, std::int64_t sequence) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  const NewTokens added{count, positions_.at(sequence)};
  return run(tokens, {&added, 1}, sequence, all_logits ? count : 1);
}

Tensor Decoder::feed_each(std::span<const std::int32_t> tokens) {
  if (static_cast<std::int64_t>(tokens.size()) != num_sequences())
    throw std::invalid_argument(
        fmt::format("{} tokens for {} sequences", tokens.size(), num_sequences()));
  std::vector<NewTokens> added;
  for (const std::int64_t position : positions_) added.push_back({1, position});
  return run(tokens, added, 0, num_sequences());
}

Tensor Decoder::run(std::span<const std::int32_t> tokens, std::span<const NewTokens> sequences,
                    std::int64_t first, std::int64_t wanted) {
  const LlamaConfig& config = stage_.config();
  for (const auto& [count, past] : sequences) {
    if (count < 1 || past + count > capacity_)
      throw std::invalid_argument(
          fmt::format("{} tokens after {} do not fit a cache of {}", count, past, capacity_));
  }
  refresh();
  last_tokens_ = static_cast<std::int64_t>(tokens.size());
  Workspace::Frame frame(device_);
  const Tensor ids = frame.tensor(DType::i32, {last_tokens_});
  copy_from_host(tokens.data(), ids);
  const Tensor residual = frame.f32({last_tokens_, config.hidden_size});
  embedding_forward(stage_.embedding_weight(), ids, residual);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const auto caches = std::span(layer.caches).subspan(static_cast<std::size_t>(first));
    stage_.blocks()[i].decode(sequences, stage_.rotary(), caches, layer.ffn, residual);
  }
  for (std::size_t i = 0; i < sequences.size(); ++i)
    positions_[static_cast<std::size_t>(first) + i] += sequences[i].count;

  const Tensor last = residual.rows(last_tokens_ - wanted, wanted);
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

void Decoder::run_ffns(const Tensor& normed, const Tensor& out) {
  refresh();
  last_tokens_ = normed.dim(0);
  for (std::size_t i = 0; i < layers_.size(); ++i)
    stage_.blocks()[i].ffn().decode(normed, layers_[i].ffn, out);
}

std::int64_t Decoder::ffn_bytes_read() const {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i)
    bytes += stage_.blocks()[i].ffn().bytes_read(layers_[i].ffn, last_tokens_);
  return bytes;
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

namespace {

using Candidates = std::vector<std::int32_t>;

// The tokens that may be sampled, the most likely first.
Candidates likeliest(std::span<const float> logits, std::span<const float> weights,
                     const SamplingOptions& options, double total) {
  // Tokens of less than this share are together less than 1 - top_p: none is in the nucleus.
  const double least =
      options.top_k > 0 ? 0.0 : (1.0 - options.top_p) * total / static_cast<double>(weights.size());
  Candidates candidates;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= least) candidates.push_back(static_cast<std::int32_t>(i));
  }
  std::size_t kept = candidates.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options.top_k));
  const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(kept);
  std::partial_sort(candidates.begin(), end, candidates.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  candidates.resize(kept);
  return candidates;
}

// Of all tokens, by index.
std::int32_t draw(std::span<const float> weights, double remaining) {
  for (std::size_t i = 0; i + 1 < weights.size(); ++i) {
    remaining -= weights[i];
    if (remaining < 0.0) return static_cast<std::int32_t>(i);
  }
  return static_cast<std::int32_t>(weights.size() - 1);
}

// Of the first candidates that have top_p of all candidates' weight together.
std::int32_t draw_from_nucleus(const Candidates& candidates, std::span<const float> weights,
                               double top_p, double total, double uniform) {
  double nucleus = 0.0;
  std::size_t count = 0;
  while (count < candidates.size() && (count == 0 || nucleus < top_p * total)) {
    nucleus += weights[candidates[count++]];
  }
  double remaining = uniform * nucleus;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    remaining -= weights[candidates[i]];
    if (remaining < 0.0) return candidates[i];
  }
  return candidates[count - 1];
}

}  // namespace

std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                          double uniform) {
  if (options.temperature == 0.0)
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) -
                                     logits.begin());
  std::vector<float> weights(logits.size());
  softmax_weights(logits, static_cast<float>(options.temperature), weights);
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (options.top_k == 0 && options.top_p == 1.0) return draw(weights, uniform * total);
  const Candidates candidates = likeliest(logits, weights, options, total);
  if (options.top_k > 0) {
    total = std::accumulate(
        candidates.begin(), candidates.end(), 0.0,
        [&](double sum, std::int32_t id) { return sum + static_cast<double>(weights[id]); });
  }
  return draw_from_nucleus(candidates, weights, options.top_p, total, uniform);
}

}  // namespace chaski
