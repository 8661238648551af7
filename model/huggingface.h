#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"
#include "model/llama_config.h"
#include "model/parameter.h"

namespace chaski {

// Reads a Hugging Face config.json of a LlamaForCausalLM, as written by transformers 4
// (`rope_theta`, `torch_dtype`) or 5 (`rope_parameters`, `dtype`). Throws std::runtime_error naming
// `source` for text that is no such JSON, std::invalid_argument for a model that Chaski does not
// have (another architecture, scaled rotary embedding, biases, another activation).
LlamaConfig parse_huggingface_config(const std::string& text, const std::string& source);

struct SpecialTokens {
  std::int64_t bos = -1;  // -1: none
  std::int64_t eos = -1;
  std::int64_t pad = -1;
  std::int64_t unk = -1;
};
// config.json for transformers 4 and 5; `dtype`: "float32" or "bfloat16", that of the weights.
std::string huggingface_config(const LlamaConfig& config, const SpecialTokens& special,
                               const std::string& dtype = "float32");
std::string huggingface_generation_config(const SpecialTokens& special);

// The names, shapes and kinds of all weights of such a model. Without lm_head.weight when tied.
struct WeightShape {
  std::string name;
  Shape shape;
  ParameterKind kind;
  std::int64_t layer;  // -1: not in a block
};
std::vector<WeightShape> huggingface_weights(const LlamaConfig& config);

}  // namespace chaski
