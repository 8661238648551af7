#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/moc/moc.h"

namespace chaski {

// Which channels of the FFN a token uses, where it does not use all (kernels/moc/moc.h).
struct MocConfig {
  std::int64_t keep = 0;  // of intermediate_size; 0: hidden_size / 2, or what the pattern keeps
  MocPattern pattern = MocPattern::topk;
  MocScore score = MocScore::gate;

  bool operator==(const MocConfig&) const = default;
};

// The shape of a LLaMA model, with Hugging Face's meanings. All counts are positive.
struct LlamaConfig {
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;  // divides num_heads; 0: num_heads
  std::int64_t head_dim = 0;      // even, at most 256; 0: hidden_size / num_heads
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 1024;
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-6;
  bool tie_embeddings = false;
  double initializer_range = 0.02;  // standard deviation of linear and embedding weights
  std::optional<MocConfig> moc;     // none: a dense SwiGLU

  // Fills in what may be derived, then checks everything. Throws std::invalid_argument naming the
  // key (`model.num_heads`), the value and what is allowed.
  void resolve();

  std::int64_t query_size() const { return num_heads * head_dim; }
  std::int64_t kv_size() const { return num_kv_heads * head_dim; }
  std::int64_t qkv_size() const { return query_size() + 2 * kv_size(); }

  std::int64_t num_parameters() const;        // tied weights counted once
  std::int64_t num_layer_parameters() const;  // of one block

  // Floating-point operations of one token's forward and backward pass at a sequence length: 6 per
  // weight of the blocks and of the head, and the causal half of the attention products
  // (Kaplan et al., arXiv 2001.08361, with 12·layers·query_size·(sequence_length + 1)/2). Of MoC
  // those of the kept channels, and of all gates forward, whatever is computed beside them.
  double training_flops_per_token(std::int64_t sequence_length) const;

  // Of the FFN in a few words: "FFN 1376", "FFN 256 of 1376 channels (topk)".
  std::string describe_ffn() const;

  bool operator==(const LlamaConfig&) const = default;
};

// The shapes of the GaLore recipes: llama-9m, -20m, -60m, -130m, -350m, -1b, -7b (vocabulary 32000,
// untied head, no grouped queries). Throws std::invalid_argument with the list of names.
LlamaConfig llama_preset(const std::string& name);
std::vector<std::string> llama_preset_names();

}  // namespace chaski
