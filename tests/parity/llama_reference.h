#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "kernels/loss/cross_entropy.h"
#include "model/llama_config.h"
#include "tests/model/ffn_reference.h"
#include "tests/parity/golden.h"

namespace chaski {

// The loss of a whole LLaMA in double, written down plainly: rows of whole documents, causal
// attention with grouped queries, rotary embedding of halves, an FFN with Mixture-of-Channels.
class LlamaReference {
 public:
  explicit LlamaReference(const LlamaConfig& config) : config_(config) {}

  std::map<std::string, test::Reference> weights;
  // Of the last logits() or loss(), by layer.
  std::vector<test::Mask> masks;
  double margin = 0.0;  // the least between a kept and a dropped gate

  // Mean over the targets that count.
  double loss(const GoldenBatch& batch) { return mean_loss(logits(batch), batch); }

  // [tokens, vocab_size].
  test::Reference logits(const GoldenBatch& batch) {
    masks.clear();
    margin = std::numeric_limits<double>::infinity();
    const std::size_t size = hidden();
    test::Reference stream;
    for (const std::int32_t token : batch.tokens) {
      const auto row =
          weights.at("model.embed_tokens.weight").begin() + token * config_.hidden_size;
      stream.insert(stream.end(), row, row + config_.hidden_size);
    }
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      add(stream, attention(layer, stream, batch));
      add(stream, ffn(layer, stream));
    }
    const test::Reference last =
        test::normalize(stream, weights.at("model.norm.weight"), config_.rms_norm_eps);
    return test::multiply_transposed(
        last, weights.at(config_.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"),
        size);
  }

 private:
  std::size_t hidden() const { return static_cast<std::size_t>(config_.hidden_size); }
  const test::Reference& weight(std::int64_t layer, const char* name) const {
    return weights.at("model.layers." + std::to_string(layer) + "." + name + ".weight");
  }
  static void add(test::Reference& stream, const test::Reference& delta) {
    for (std::size_t i = 0; i < stream.size(); ++i) stream[i] += delta[i];
  }

  test::Reference ffn(std::int64_t layer, const test::Reference& stream) {
    const test::FfnReference reference{config_.rms_norm_eps,
                                       weight(layer, "post_attention_layernorm"),
                                       weight(layer, "mlp.gate_proj"), weight(layer, "mlp.up_proj"),
                                       weight(layer, "mlp.down_proj")};
    const test::Reference gates = reference.gates(stream);
    const auto channels = static_cast<std::size_t>(config_.intermediate_size);
    const test::Mask mask = config_.moc ? test::select_channels(*config_.moc, gates, channels)
                                        : test::Mask(gates.size(), true);
    if (config_.moc) margin = std::min(margin, least_margin(gates, mask));
    masks.push_back(mask);
    return reference.output(stream, mask);
  }

  // Of 2:8 within each group of eight.
  double least_margin(const test::Reference& gates, const test::Mask& mask) const {
    const std::int64_t channels = config_.intermediate_size;
    if (config_.moc->pattern == MocPattern::topk)
      return test::smallest_margin(gates, mask, static_cast<std::size_t>(channels));
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t row = 0; row < std::ssize(gates); row += channels) {
      for (std::int64_t begin = row; begin < row + channels; begin += 8) {
        const std::int64_t end = std::min(begin + 8, row + channels);
        const test::Reference part(gates.begin() + begin, gates.begin() + end);
        const test::Mask kept(mask.begin() + begin, mask.begin() + end);
        least = std::min(least, test::smallest_margin(part, kept, part.size()));
      }
    }
    return least;
  }

  // Heads [T, heads · head_dim], each rotated by its token's position.
  void rotate(test::Reference& rows, std::int64_t heads, std::int64_t length) const {
    const std::int64_t dim = config_.head_dim;
    for (std::int64_t i = 0; i < std::ssize(rows); i += dim) {
      const std::int64_t position = i / (heads * dim) % length;
      for (std::int64_t j = 0; j < dim / 2; ++j) {
        const double angle = static_cast<double>(position) *
                             std::pow(config_.rope_theta, -2.0 * static_cast<double>(j) / dim);
        const double first = rows[i + j];
        const double second = rows[i + j + dim / 2];
        rows[i + j] = first * std::cos(angle) - second * std::sin(angle);
        rows[i + j + dim / 2] = second * std::cos(angle) + first * std::sin(angle);
      }
    }
  }

  test::Reference attention(std::int64_t layer, const test::Reference& stream,
                            const GoldenBatch& batch) const {
    const test::Reference x =
        test::normalize(stream, weight(layer, "input_layernorm"), config_.rms_norm_eps);
    test::Reference q = test::multiply_transposed(x, weight(layer, "self_attn.q_proj"), hidden());
    test::Reference k = test::multiply_transposed(x, weight(layer, "self_attn.k_proj"), hidden());
    const test::Reference v =
        test::multiply_transposed(x, weight(layer, "self_attn.v_proj"), hidden());
    rotate(q, config_.num_heads, batch.sequence_length);
    rotate(k, config_.num_kv_heads, batch.sequence_length);
    const std::int64_t dim = config_.head_dim;
    test::Reference out(q.size(), 0.0);
    for (std::int64_t token = 0; token < batch.rows * batch.sequence_length; ++token) {
      const std::int64_t first = token - token % batch.sequence_length;
      for (std::int64_t head = 0; head < config_.num_heads; ++head) {
        const std::int64_t query = (token * config_.num_heads + head) * dim;
        const std::int64_t kv_head = head / (config_.num_heads / config_.num_kv_heads);
        const auto key = [&](std::int64_t other) {
          return (other * config_.num_kv_heads + kv_head) * dim;
        };
        test::Reference weights_of_keys;
        double sum = 0.0;
        for (std::int64_t other = first; other <= token; ++other) {
          double score = 0.0;
          for (std::int64_t i = 0; i < dim; ++i) score += q[query + i] * k[key(other) + i];
          weights_of_keys.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
          sum += weights_of_keys.back();
        }
        for (std::int64_t other = first; other <= token; ++other)
          for (std::int64_t i = 0; i < dim; ++i)
            out[query + i] += weights_of_keys[other - first] / sum * v[key(other) + i];
      }
    }
    return test::multiply_transposed(out, weight(layer, "self_attn.o_proj"),
                                     static_cast<std::size_t>(config_.query_size()));
  }

  double mean_loss(const test::Reference& logits, const GoldenBatch& batch) const {
    const std::int64_t vocab = config_.vocab_size;
    double total = 0.0;
    for (std::int64_t token = 0; token < std::ssize(batch.targets); ++token) {
      if (batch.targets[token] == kIgnoredTarget) continue;
      double sum = 0.0;
      for (std::int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[token * vocab + i]);
      total += std::log(sum) - logits[token * vocab + batch.targets[token]];
    }
    return total / static_cast<double>(batch.num_targets());
  }

  LlamaConfig config_;
};

}  // namespace chaski
