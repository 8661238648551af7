#include "data/sampler.h"

#include <algorithm>
#include <bit>

namespace chaski {
namespace {

constexpr int kRounds = 8;

// The finalizer of SplitMix64: every bit of the input changes each bit of the output half the
// time.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t permute(std::uint64_t index, std::uint64_t n, std::uint64_t key) {
  if (n <= 1) return 0;
  const int half_bits = std::max(1, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  std::uint64_t value = index;
  do {
    std::uint64_t left = value >> half_bits, right = value & mask;
    for (int round = 0; round < kRounds; ++round) {
      const std::uint64_t round_key = mix(key + static_cast<std::uint64_t>(round));
      const std::uint64_t next = left ^ (mix(right ^ round_key) & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits) | right;
  } while (value >= n);
  return value;
}

SequencePosition sequence_at(std::uint64_t sample, std::uint64_t num_sequences, std::uint64_t seed,
                             bool shuffle) {
  const std::uint64_t epoch = sample / num_sequences;
  const std::uint64_t index = sample % num_sequences;
  if (!shuffle) return {epoch, index};
  return {epoch, permute(index, num_sequences, mix(mix(seed) ^ epoch))};
}

}  // namespace chaski
