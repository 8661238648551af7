#pragma once

#include <random>
#include <vector>

#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/stage.h"

namespace chaski::testing {

// A model small enough for finite differences, with grouped queries and odd sizes.
inline LlamaConfig tiny_config(bool tied = false) {
  LlamaConfig config;
  config.hidden_size = 12;
  config.intermediate_size = 17;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.vocab_size = 29;
  config.max_position_embeddings = 16;
  config.initializer_range = 0.3;
  config.tie_embeddings = tied;
  config.resolve();
  return config;
}

// Random tokens and targets (some ignored) on a device.
class TinyBatch {
 public:
  TinyBatch(Device& device, const LlamaConfig& config, std::int64_t rows,
            std::int64_t sequence_length, unsigned seed = 3)
      : tokens_(device.allocate(DType::i32, {rows, sequence_length}, MemoryCategory::workspace)),
        targets_(device.allocate(DType::i32, {rows, sequence_length}, MemoryCategory::workspace)),
        positions_(
            device.allocate(DType::i32, {rows, sequence_length}, MemoryCategory::workspace)) {
    std::mt19937 generator(seed);
    const auto vocab = static_cast<unsigned>(config.vocab_size);
    for (std::int64_t i = 0; i < rows * sequence_length; ++i) {
      tokens_.tensor().i32()[i] = static_cast<std::int32_t>(generator() % vocab);
      targets_.tensor().i32()[i] =
          generator() % 7 == 0 ? -1 : static_cast<std::int32_t>(generator() % vocab);
      const std::int64_t in_row = i % sequence_length;
      // A document border in each row.
      const std::int64_t border = sequence_length / 2 + 1;
      positions_.tensor().i32()[i] =
          static_cast<std::int32_t>(in_row >= border ? in_row - border : in_row);
    }
  }
  MicroBatch batch(bool with_positions = false) const {
    return {tokens_.tensor(), targets_.tensor(), with_positions ? positions_.tensor() : Tensor()};
  }
  MicroBatch rows(std::int64_t begin, std::int64_t count) const {
    return {tokens_.tensor().rows(begin, count), targets_.tensor().rows(begin, count), {}};
  }

 private:
  Buffer tokens_;
  Buffer targets_;
  Buffer positions_;
};

inline std::vector<float> values_of(const Tensor& tensor) {
  return {tensor.f32(), tensor.f32() + tensor.num_elements()};
}

inline StageOptions tiny_options(std::int64_t rows, std::int64_t sequence_length) {
  StageOptions options;
  options.micro_batch = rows;
  options.sequence_length = sequence_length;
  return options;
}

}  // namespace chaski::testing
