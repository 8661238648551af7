#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/device/device.h"
#include "model/stage.h"

namespace chaski {

// Runs a model token by token with a key-value cache for each sequence. The stage must hold the
// whole model and must outlive the decoder; its weights may change meanwhile: what the decoder made
// of them (a transposed copy of each down projection, with MoC) is then made again, while what was
// fed before keeps the keys and values of the old ones.
class Decoder {
 public:
  // `capacity`: tokens that the cache of a sequence can hold, 1 … max_position_embeddings.
  // Throws std::invalid_argument naming the value and the limit.
  Decoder(Device& device, const Stage& stage, std::int64_t capacity,
          std::int64_t num_sequences = 1);

  // Feeds tokens (at least one) at the next positions of a sequence. Returns the logits of the last
  // one [1, vocab_size], or of all of them [n, vocab_size]; valid until the next call.
  // Throws std::invalid_argument when the cache would overflow or an id is out of range.
  Tensor feed(std::span<const std::int32_t> tokens, bool all_logits = false,
              std::int64_t sequence = 0);
  // Feeds one token to each sequence, each at its own next position: weights are read once for all.
  // Returns their logits [num_sequences, vocab_size].
  Tensor feed_each(std::span<const std::int32_t> tokens);
  // The FFNs of all blocks alone, one after the other, each on normed [n, hidden_size], into out:
  // for measuring.
  void run_ffns(const Tensor& normed, const Tensor& out);
  // Bytes of the FFNs' weights that the last call of these read.
  std::int64_t ffn_bytes_read() const;

  std::int64_t num_sequences() const { return static_cast<std::int64_t>(positions_.size()); }
  std::int64_t position(std::int64_t sequence = 0) const { return positions_.at(sequence); }
  std::int64_t capacity() const { return capacity_; }
  // Forgets everything fed to a sequence after its first `position` tokens. Throws
  // std::invalid_argument when there were fewer.
  void rewind(std::int64_t position, std::int64_t sequence = 0);

 private:
  // Of one block.
  struct Layer {
    std::vector<KeyValueCache> caches;  // by sequence
    FfnDecoding ffn;
  };

  // The new tokens of the sequences from `first` on; logits of the last `wanted` tokens.
  Tensor run(std::span<const std::int32_t> tokens, std::span<const NewTokens> sequences,
             std::int64_t first, std::int64_t wanted);
  void refresh();

  Device& device_;
  const Stage& stage_;
  std::int64_t capacity_;
  std::vector<std::int64_t> positions_;  // by sequence
  std::int64_t weights_version_ = -1;
  std::int64_t last_tokens_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<Layer> layers_;
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
