#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "model/stage.h"

namespace chaski {

// Runs a model token by token with a key-value cache. The stage must hold the whole model and must
// outlive the decoder; its weights may change in between.
class Decoder {
 public:
  // `capacity`: tokens that the cache of a sequence can hold, 1 … max_position_embeddings.
  // `num_sequences`: continuations of the same beginning, at least 1.
  // Throws std::invalid_argument naming the value and the limit.
  Decoder(Device& device, const Stage& stage, std::int64_t capacity,
          std::int64_t num_sequences = 1);

  // Feeds tokens (at least one) at the next positions of all sequences. Returns the logits of the
  // last one [1, vocab_size], or of all of them [n, vocab_size]; valid until the next call.
  // Throws std::invalid_argument when the cache would overflow or an id is out of range.
  Tensor feed(std::span<const std::int32_t> tokens, bool all_logits = false);
  // Feeds each sequence its own next token. Returns the logits [num_sequences, vocab_size], as
  // feed().
  Tensor feed_each(std::span<const std::int32_t> tokens);
  std::int64_t position() const { return position_; }
  std::int64_t capacity() const { return capacity_; }
  // Forgets everything fed after the first `position` tokens. Throws std::invalid_argument when
  // there were fewer.
  void rewind(std::int64_t position);

 private:
  using Caches = std::vector<KeyValueCache>;  // of the sequences

  void require_room(std::int64_t new_tokens) const;
  // The residual stream after the last block, of one cache of each block or of all.
  void run_blocks(std::span<const std::int32_t> tokens, std::size_t num_caches,
                  const Tensor& residual);
  Tensor logits_of(const Tensor& last);
  void share_beginning(std::int64_t new_tokens);
  // Those that MoC decodes with, made anew where weights have changed.
  void refresh_transposed();

  Device& device_;
  const Stage& stage_;
  std::int64_t capacity_;
  std::int64_t num_sequences_;
  std::int64_t position_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<Caches> caches_;       // by block
  std::vector<Buffer> transposed_;   // by block: the down projection; empty without MoC
  std::int64_t transposed_at_ = -1;  // ParameterSet::num_changes()
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
