#include "kernels/moc/moc_cpu.h"

#include <omp.h>

#include "kernels/elementwise/vector_math.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// Channels are taken sixteen at a time; a word has a bit for each that is kept.
constexpr std::int64_t kBlock = 16;

struct Block {
  alignas(64) float at[kBlock];
};

std::int64_t num_blocks(const MocProblem& p) {
  return (p.size + kBlock - 1) / kBlock;
}

#if defined(__AVX512F__)
std::uint32_t bits_above(const std::int32_t* keys, std::int32_t threshold) {
  return _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(keys), _mm512_set1_epi32(threshold));
}
std::uint32_t bits_equal(const std::int32_t* keys, std::int32_t threshold) {
  return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(keys), _mm512_set1_epi32(threshold));
}
__mmask16 as_many_as(std::uint32_t bits) {
  return static_cast<__mmask16>((1u << __builtin_popcount(bits)) - 1);
}
// Writes the kept ones beside each other. In a register first: with memory as its operand the
// instruction takes a hundred cycles on Zen 4.
void pack(float* to, std::uint32_t bits, const Block& block) {
  const __m512 packed =
      _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), _mm512_load_ps(block.at));
  _mm512_mask_storeu_ps(to, as_many_as(bits), packed);
}
// The reverse, zero where nothing was kept.
void unpack(const float* from, std::uint32_t bits, Block& block) {
  const __m512 packed = _mm512_maskz_loadu_ps(as_many_as(bits), from);
  _mm512_store_ps(block.at, _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), packed));
}
void zero_others(std::uint32_t bits, Block& block) {
  _mm512_store_ps(block.at,
                  _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), _mm512_load_ps(block.at)));
}
#else
std::uint32_t bits_above(const std::int32_t* keys, std::int32_t threshold) {
  std::uint32_t bits = 0;
  for (std::int64_t i = 0; i < kBlock; ++i) bits |= (keys[i] > threshold ? 1u : 0u) << i;
  return bits;
}
std::uint32_t bits_equal(const std::int32_t* keys, std::int32_t threshold) {
  std::uint32_t bits = 0;
  for (std::int64_t i = 0; i < kBlock; ++i) bits |= (keys[i] == threshold ? 1u : 0u) << i;
  return bits;
}
void pack(float* to, std::uint32_t bits, const Block& block) {
  for (; bits != 0; bits &= bits - 1) *to++ = block.at[__builtin_ctz(bits)];
}
void unpack(const float* from, std::uint32_t bits, Block& block) {
  for (float& x : block.at) x = 0.0f;
  for (; bits != 0; bits &= bits - 1) block.at[__builtin_ctz(bits)] = *from++;
}
void zero_others(std::uint32_t bits, Block& block) {
  for (std::int64_t i = 0; i < kBlock; ++i) block.at[i] = bits >> i & 1 ? block.at[i] : 0.0f;
}
#endif

// `count` elements of a row, zeros behind them.
void load(const float* from, std::int64_t count, Block& block) {
  if (count == kBlock) {
    __builtin_memcpy(block.at, from, sizeof block.at);
    return;
  }
  for (std::int64_t i = 0; i < kBlock; ++i) block.at[i] = i < count ? from[i] : 0.0f;
}
void store(const Block& block, std::int64_t count, float* to) {
  if (count == kBlock) {
    __builtin_memcpy(to, block.at, sizeof block.at);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) to[i] = block.at[i];
}

// Integers in the order of the floats, NaN of either sign above all, one for both zeros.
[[gnu::always_inline]] inline std::int32_t key_of(float x) {
  const auto bits = __builtin_bit_cast(std::int32_t, x + 0.0f);
  return x != x ? bits & 0x7fffffff : bits ^ ((bits >> 31) & 0x7fffffff);
}

// Of no number: behind a row's end, where it is never kept.
constexpr std::int32_t kLeastKey = -2147483647 - 1;
constexpr std::int32_t kLargestKey = 2147483647;

// A thread's part of the scratch memory.
struct Scratch {
  std::int32_t* keys;   // [blocks · kBlock]
  std::uint16_t* bits;  // [blocks]: what is kept
};

std::int64_t scratch_floats(const MocProblem& p) {
  return num_blocks(p) * kBlock + (num_blocks(p) + 1) / 2;
}

Scratch scratch_of(const MocProblem& p, float* scratch, int thread) {
  float* mine = scratch + thread * scratch_floats(p);
  return {reinterpret_cast<std::int32_t*>(mine),
          reinterpret_cast<std::uint16_t*>(mine + num_blocks(p) * kBlock)};
}

void fill_keys(const MocProblem& p, const float* gates, std::int32_t* keys) {
  if (p.by_silu_magnitude) {
#pragma omp simd
    for (std::int64_t i = 0; i < p.size; ++i)
      keys[i] = key_of(__builtin_fabsf(gates[i] * sigmoid_of(gates[i])));
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < p.size; ++i) keys[i] = key_of(gates[i]);
  }
  for (std::int64_t i = p.size; i < num_blocks(p) * kBlock; ++i) keys[i] = kLeastKey;
}

std::int64_t count_above(const std::int32_t* keys, std::int64_t size, std::int32_t threshold) {
  std::int32_t count = 0;
#pragma omp simd reduction(+ : count)
  for (std::int64_t i = 0; i < size; ++i) count += keys[i] > threshold ? 1 : 0;
  return count;
}

// Kept are all keys above `key` and the first `ties` of those that equal it.
struct Threshold {
  std::int32_t key;
  std::int64_t ties;
};

// By bisection over the keys: each count goes through the row once, from the cache, in vectors. It
// ends early where a threshold between two keys separates exactly `keep`.
Threshold find_threshold(const std::int32_t* keys, std::int64_t size, std::int64_t keep) {
  std::int32_t least = kLargestKey;
  std::int32_t largest = kLeastKey;
#pragma omp simd reduction(min : least) reduction(max : largest)
  for (std::int64_t i = 0; i < size; ++i) {
    least = keys[i] < least ? keys[i] : least;
    largest = keys[i] > largest ? keys[i] : largest;
  }
  // The `keep`th largest key lies in [low, high]; `above` keys exceed `high`.
  std::int64_t low = least;
  std::int64_t high = largest;
  std::int64_t above = 0;
  while (low < high) {
    const std::int64_t middle = low + ((high - low) >> 1);
    const std::int64_t count = count_above(keys, size, static_cast<std::int32_t>(middle));
    if (count == keep) return {static_cast<std::int32_t>(middle), 0};
    if (count > keep) {
      low = middle + 1;
    } else {
      high = middle;
      above = count;
    }
  }
  return {static_cast<std::int32_t>(high), keep - above};
}

// The lowest `count` set bits, or all where there are fewer.
std::uint32_t lowest_bits(std::uint32_t bits, std::int64_t count) {
  std::uint32_t rest = bits;
  for (; count > 0 && rest != 0; --count) rest &= rest - 1;
  return bits ^ rest;
}

void select_topk(const MocProblem& p, const Scratch& scratch) {
  const Threshold threshold = find_threshold(scratch.keys, p.size, p.keep);
  std::int64_t ties = threshold.ties;
  for (std::int64_t b = 0; b < num_blocks(p); ++b) {
    const std::int32_t* keys = scratch.keys + b * kBlock;
    std::uint32_t bits = bits_above(keys, threshold.key);
    if (ties > 0) {
      const std::uint32_t equal = lowest_bits(bits_equal(keys, threshold.key), ties);
      ties -= __builtin_popcount(equal);
      bits |= equal;
    }
    scratch.bits[b] = static_cast<std::uint16_t>(bits);
  }
}

typedef std::int32_t Keys __attribute__((vector_size(4 * kBlock), aligned(4), may_alias));

// Two groups of eight at a time: a channel is kept where at most one other of its group comes
// before it, by a larger key or by an equal one of a lower channel.
void select_of_eight(const MocProblem& p, const Scratch& scratch) {
  constexpr Keys kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  constexpr Keys kGroup = {0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8};
  for (std::int64_t b = 0; b < num_blocks(p); ++b) {
    const Keys keys = *reinterpret_cast<const Keys*>(scratch.keys + b * kBlock);
    Keys before = {};
    for (std::int32_t by = 1; by < 8; ++by) {
      const Keys lane = ((kLane + by) & 7) + kGroup;
      const Keys other = __builtin_shuffle(keys, lane);
      before -= (other > keys) | ((other == keys) & (lane < kLane));
    }
    std::int32_t rank[kBlock];
    __builtin_memcpy(rank, &before, sizeof rank);
    std::uint32_t bits = 0;
    for (std::int64_t i = 0; i < kBlock; ++i) bits |= (rank[i] < 2 ? 1u : 0u) << i;
    const std::int64_t count = p.size - b * kBlock;
    scratch.bits[b] =
        static_cast<std::uint16_t>(count < kBlock ? bits & ((1u << count) - 1) : bits);
  }
}

void select_row(const MocProblem& p, const float* gates, const Scratch& scratch) {
  fill_keys(p, gates, scratch.keys);
  p.two_of_eight ? select_of_eight(p, scratch) : select_topk(p, scratch);
}

void list_channels(const MocProblem& p, const std::uint16_t* bits, std::uint16_t* channels) {
  for (std::int64_t b = 0; b < num_blocks(p); ++b) {
    for (unsigned word = bits[b]; word != 0; word &= word - 1)
      *channels++ = static_cast<std::uint16_t>(b * kBlock + __builtin_ctz(word));
  }
}

void write_index(const MocProblem& p, const Scratch& scratch, std::uint8_t* index) {
  if (p.bitmap) {
    __builtin_memcpy(index, scratch.bits, static_cast<std::size_t>(p.index_bytes));
  } else {
    list_channels(p, scratch.bits, reinterpret_cast<std::uint16_t*>(index));
  }
}

void read_index(const MocProblem& p, const std::uint8_t* index, const Scratch& scratch) {
  __builtin_memset(scratch.bits, 0,
                   static_cast<std::size_t>(num_blocks(p)) * sizeof(std::uint16_t));
  if (p.bitmap) {
    __builtin_memcpy(scratch.bits, index, static_cast<std::size_t>(p.index_bytes));
    return;
  }
  const auto* channels = reinterpret_cast<const std::uint16_t*>(index);
  for (std::int64_t k = 0; k < p.keep; ++k)
    scratch.bits[channels[k] / kBlock] |= static_cast<std::uint16_t>(1u << (channels[k] % kBlock));
}

MocRows row_of(const MocProblem& p, const MocRows& kept, std::int64_t row) {
  const std::int64_t at = row * p.keep;
  return {kept.gate + at, kept.up + at, kept.silu == nullptr ? nullptr : kept.silu + at,
          kept.product == nullptr ? nullptr : kept.product + at, kept.index + row * p.index_bytes};
}

// work(block, channels of it, those that are kept, how many were kept before it).
template <typename Work>
[[gnu::always_inline]] inline void for_each_block(const MocProblem& p, const std::uint16_t* bits,
                                                  const Work& work) {
  std::int64_t place = 0;
  for (std::int64_t b = 0; b < num_blocks(p); ++b) {
    const std::int64_t rest = p.size - b * kBlock;
    work(b, rest < kBlock ? rest : kBlock, std::uint32_t{bits[b]}, place);
    place += __builtin_popcount(bits[b]);
  }
}

void forward_row(const MocProblem& p, const float* gates, const MocRows& kept, float* activation,
                 const Scratch& scratch) {
  select_row(p, gates, scratch);
  write_index(p, scratch, kept.index);
  for_each_block(p, scratch.bits,
                 [&](std::int64_t b, std::int64_t count, std::uint32_t bits, std::int64_t place) {
                   Block gate;
                   Block up;
                   Block silu;
                   Block product;
                   load(gates + b * kBlock, count, gate);
                   load(gates + p.size + b * kBlock, count, up);
#pragma omp simd
                   for (std::int64_t i = 0; i < kBlock; ++i) {
                     silu.at[i] = gate.at[i] * sigmoid_of(gate.at[i]);
                     product.at[i] = silu.at[i] * up.at[i];
                   }
                   pack(kept.gate + place, bits, gate);
                   pack(kept.up + place, bits, up);
                   if (kept.silu != nullptr) pack(kept.silu + place, bits, silu);
                   if (kept.product != nullptr) pack(kept.product + place, bits, product);
                   zero_others(bits, product);
                   store(product, count, activation + b * kBlock);
                 });
}

void select(const MocProblem& p, const float* gates, const MocRows& kept, float* scratch,
            std::int64_t rows, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Scratch mine = scratch_of(p, scratch, omp_get_thread_num());
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < rows; ++row) {
      const MocRows r = row_of(p, kept, row);
      const float* from = gates + row * p.size;
      select_row(p, from, mine);
      write_index(p, mine, r.index);
      for_each_block(
          p, mine.bits,
          [&](std::int64_t b, std::int64_t count, std::uint32_t bits, std::int64_t place) {
            Block gate;
            load(from + b * kBlock, count, gate);
            pack(r.gate + place, bits, gate);
          });
    }
  }
}

void forward(const MocProblem& p, const float* gate_up, const MocRows& kept, float* activation,
             float* scratch, std::int64_t rows, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Scratch mine = scratch_of(p, scratch, omp_get_thread_num());
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < rows; ++row)
      forward_row(p, gate_up + row * 2 * p.size, row_of(p, kept, row), activation + row * p.size,
                  mine);
  }
}

// Gates that were not kept count as 0 with an up projection of 0: all their gradients are 0, but
// for those of activations that are not finite, which are masked.
void backward_row(const MocProblem& p, const MocRows& kept, const float* dactivation,
                  float* dgate_up, float* activation, const Scratch& scratch) {
  read_index(p, kept.index, scratch);
  for_each_block(p, scratch.bits,
                 [&](std::int64_t b, std::int64_t count, std::uint32_t bits, std::int64_t place) {
                   Block gate;
                   Block up;
                   Block d;
                   Block dgate;
                   Block dup;
                   Block product;
                   unpack(kept.gate + place, bits, gate);
                   unpack(kept.up + place, bits, up);
                   load(dactivation + b * kBlock, count, d);
                   zero_others(bits, d);
#pragma omp simd
                   for (std::int64_t i = 0; i < kBlock; ++i) {
                     const float sigmoid = sigmoid_of(gate.at[i]);
                     const float silu = gate.at[i] * sigmoid;
                     dgate.at[i] = d.at[i] * up.at[i] * (sigmoid + silu * (1.0f - sigmoid));
                     dup.at[i] = d.at[i] * silu;
                     product.at[i] = silu * up.at[i];
                   }
                   store(dgate, count, dgate_up + b * kBlock);
                   store(dup, count, dgate_up + p.size + b * kBlock);
                   if (activation != nullptr) store(product, count, activation + b * kBlock);
                 });
}

void backward(const MocProblem& p, const MocRows& kept, const float* dactivation, float* dgate_up,
              float* activation, float* scratch, std::int64_t rows, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Scratch mine = scratch_of(p, scratch, omp_get_thread_num());
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < rows; ++row)
      backward_row(p, row_of(p, kept, row), dactivation + row * p.size, dgate_up + row * 2 * p.size,
                   activation == nullptr ? nullptr : activation + row * p.size, mine);
  }
}

void count(const MocProblem& p, const MocRows& kept, std::int32_t* counts, std::int32_t* positive,
           float* scratch, std::int64_t rows) {
  const Scratch mine = scratch_of(p, scratch, 0);
  std::uint64_t sum = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const MocRows r = row_of(p, kept, row);
    read_index(p, r.index, mine);
    for (std::int64_t i = 0; i < p.size; ++i)
      counts[i] += mine.bits[i / kBlock] >> (i % kBlock) & 1;
    for (std::int64_t k = 0; k < p.keep; ++k) sum += r.gate[k] > 0.0f ? 1 : 0;
  }
  sum += static_cast<std::uint32_t>(positive[0]);
  positive[0] = static_cast<std::int32_t>(sum);
  positive[1] += static_cast<std::int32_t>(sum >> 32);
}

}  // namespace

const MocKernels moc_kernels = {scratch_floats, select, forward, backward, count};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
