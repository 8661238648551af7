#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "model/stage.h"

namespace chaski {

// Runs a model token by token with a key-value cache. The stage must hold the whole model and must
// outlive the decoder.
class Decoder {
 public:
  // `capacity`: tokens that the cache can hold, 1 … max_position_embeddings.
  // Throws std::invalid_argument naming the value and the limit.
  Decoder(Device& device, const Stage& stage, std::int64_t capacity);

  // Feeds tokens (at least one) at the next positions. Returns the logits of the last one
  // [1, vocab_size], or of all of them [n, vocab_size]; valid until the next call.
  // Throws std::invalid_argument when the cache would overflow or an id is out of range.
  Tensor feed(std::span<const std::int32_t> tokens, bool all_logits = false);
  std::int64_t position() const { return position_; }
  std::int64_t capacity() const { return capacity_; }
  // Forgets everything fed after the first `position` tokens. Throws std::invalid_argument when
  // there were fewer.
  void rewind(std::int64_t position);

 private:
  Device& device_;
  const Stage& stage_;
  std::int64_t capacity_;
  std::int64_t position_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<KeyValueCache> caches_;  // one a block
  Buffer logits_;
};

// How the next token is chosen from logits.
struct SamplingOptions {
  double temperature = 0.8;  // 0: always the most likely token
  std::int64_t top_k = 0;    // keep the k most likely; 0: all
  double top_p = 1.0;        // then keep the fewest whose probabilities reach top_p
  // Throws std::invalid_argument naming the option, the value and what is allowed.
  void validate() const;
};

// Samples an index of `logits` (natural-logarithm scale). `uniform` in [0, 1) decides; equal logits
// are ranked by index, so that the result is a pure function of the arguments.
std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                          double uniform);

}  // namespace chaski
