#pragma once

#include <cstdint>

namespace chaski {

// Where `index` goes in a permutation of [0, n) that `key` chooses: a bijection for every n and
// key, computed in O(1) time and memory (a Feistel network over the next even power of two, walked
// until it hits the range). Requires index < n.
std::uint64_t permute(std::uint64_t index, std::uint64_t n, std::uint64_t key);

// A sequence of the training data, in the epoch that reads it.
struct SequencePosition {
  std::uint64_t epoch;
  std::uint64_t sequence;  // in [0, num_sequences)
};

// Which sequence is the `sample`-th of a run: each epoch reads every sequence once, in an order of
// its own that depends on (seed, epoch) alone. Without `shuffle` each reads them from front to
// back. Requires num_sequences > 0.
SequencePosition sequence_at(std::uint64_t sample, std::uint64_t num_sequences, std::uint64_t seed,
                             bool shuffle);

}  // namespace chaski
