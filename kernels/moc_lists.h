#pragma once

// What is kept of some tokens, as lists for moc_products_cpu.cpp: by token and by channel. For
// x_cpu.cpp files only (see cpu_kernels.h).

#include "kernels/moc_panels.h"
#include "kernels/moc_products_cpu.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

std::int64_t num_channel_chunks(const MocProductsProblem& p) {
  return blocks_of(p.size, kChunk);
}
std::int64_t num_token_chunks(const MocProductsProblem& p) {
  return blocks_of(p.tokens, kChunk);
}
std::int64_t num_hidden_blocks(const MocProductsProblem& p) {
  return blocks_of(p.hidden, kWidth);
}

// Memory that is cut into pieces; without any it only counts.
struct Scratch {
  float* memory;
  std::int64_t floats = 0;

  template <typename T>
  T* take(std::int64_t count) {
    constexpr std::int64_t kLine = 16;
    const auto bytes = count * static_cast<std::int64_t>(sizeof(T));
    float* result = memory == nullptr ? nullptr : memory + floats;
    floats += blocks_of(bytes, kLine * 4) * kLine;
    return reinterpret_cast<T*>(result);
  }
};

// What one thread works in. Rows have room for a vector behind their end.
struct Own {
  float* panel;             // [kChunk, kWidth]
  float* sums;              // [kRows, kWidth]
  float* pending;           // [kPendingFloats]
  float* rows[3];           // [keep + kLanes] each
  std::uint16_t* channels;  // [keep + kLanes]
  std::int32_t* cursor;     // [size]
};

Own take_own(const MocProductsProblem& p, Scratch& scratch) {
  Own own{};
  own.panel = scratch.take<float>(kChunk * kWidth);
  own.sums = scratch.take<float>(kRows * kWidth);
  own.pending = scratch.take<float>(kPendingFloats);
  for (float*& row : own.rows) row = scratch.take<float>(p.keep + kLanes);
  own.channels = scratch.take<std::uint16_t>(p.keep + kLanes);
  own.cursor = scratch.take<std::int32_t>(p.size);
  return own;
}

// The channels of a token in ascending order, from either form of the index.
#if defined(__AVX512F__)
void list_bits(const std::uint8_t* bytes, std::int64_t num_bytes, std::uint16_t* channels) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (std::int64_t b = 0; b < num_bytes; b += 2) {
    const unsigned bits = bytes[b] | (b + 1 < num_bytes ? bytes[b + 1] << 8 : 0);
    const __m512i all = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(b) * 8));
    const __m512i kept = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(channels),
                        _mm512_maskz_cvtepi32_epi16(0xffff, kept));
    channels += __builtin_popcount(bits);
  }
}
#else
void list_bits(const std::uint8_t* bytes, std::int64_t num_bytes, std::uint16_t* channels) {
  for (std::int64_t b = 0; b < num_bytes; ++b) {
    for (unsigned bits = bytes[b]; bits != 0; bits &= bits - 1)
      *channels++ = static_cast<std::uint16_t>(b * 8 + __builtin_ctz(bits));
  }
}
#endif

const std::uint16_t* channels_of(const MocProductsProblem& p, const std::uint8_t* index,
                                 std::int64_t token, const Own& own) {
  const std::uint8_t* mine = index + token * p.index_bytes;
  if (!p.bitmap) return reinterpret_cast<const std::uint16_t*>(mine);
  list_bits(mine, p.index_bytes, own.channels);
  return own.channels;
}

// Cut into chunks of channels; in each, token t has the entries [begin[t], begin[t + 1]).
struct ByToken {
  std::int32_t* begin;     // [chunks, tokens + 1]
  std::uint8_t* channels;  // [tokens · keep + 16], counted from the first of the chunk
};

ByToken take_by_token(const MocProductsProblem& p, Scratch& scratch) {
  ByToken lists{};
  lists.begin = scratch.take<std::int32_t>(num_channel_chunks(p) * (p.tokens + 1));
  lists.channels = scratch.take<std::uint8_t>(p.tokens * p.keep + kLanes);
  return lists;
}

// For each chunk of channels, work(its place, how many of the token's channels come before, how
// many it has).
template <typename Work>
[[gnu::always_inline]] inline void for_each_run(const MocProductsProblem& p, const ByToken& lists,
                                                std::int64_t token, const Work& work) {
  std::int64_t before = 0;
  for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
    const std::int32_t* begin = lists.begin + c * (p.tokens + 1) + token;
    const std::int64_t count = begin[1] - begin[0];
    work(c, before, std::int64_t{begin[0]}, count);
    before += count;
  }
}

// A token's values from the order of the lists to that of its channels, and back.
void gather_runs(const MocProductsProblem& p, const ByToken& lists, const float* values,
                 std::int64_t token, float* row) {
  for_each_run(p, lists, token,
               [&](std::int64_t, std::int64_t before, std::int64_t begin, std::int64_t count) {
                 for (std::int64_t k = 0; k < count; k += kLanes)
                   at(row + before + k) = at(values + begin + k);
               });
}

// Whole vectors at a time where what they overwrite is still to come: entries of later tokens of
// the same block.
template <typename Copy>
[[gnu::always_inline]] inline void copy_run(std::int64_t count, std::int64_t room,
                                            const Copy& copy) {
  if (blocks_of(count, kLanes) * kLanes <= room) {
    for (std::int64_t k = 0; k < count; k += kLanes) copy(k, kLanes);
  } else {
    for (std::int64_t k = 0; k < count; ++k) copy(k, 1);
  }
}

void scatter_runs(const MocProductsProblem& p, const ByToken& lists, const float* row,
                  std::int64_t token, std::int64_t block_end, float* values) {
  for_each_run(p, lists, token,
               [&](std::int64_t c, std::int64_t before, std::int64_t begin, std::int64_t count) {
                 const std::int64_t limit = lists.begin[c * (p.tokens + 1) + block_end];
                 copy_run(count, limit - begin, [&](std::int64_t k, std::int64_t n) {
                   if (n == kLanes) {
                     at(values + begin + k) = at(row + before + k);
                   } else {
                     values[begin + k] = row[before + k];
                   }
                 });
               });
}

void scatter_channels(const MocProductsProblem& p, const ByToken& lists,
                      const std::uint16_t* channels, std::int64_t token, std::int64_t block_end) {
  for_each_run(p, lists, token,
               [&](std::int64_t c, std::int64_t before, std::int64_t begin, std::int64_t count) {
                 const std::uint16_t* from = channels + before;
                 std::uint8_t* to = lists.channels + begin;
                 const auto first = static_cast<std::uint16_t>(c * kChunk);
                 for (std::int64_t k = 0; k < count; ++k)
                   to[k] = static_cast<std::uint8_t>(from[k] - first);
               });
  static_cast<void>(block_end);
}

// By all threads together.
void list_by_token(const MocProductsProblem& p, const std::uint8_t* index, const Own& own,
                   const ByToken& lists) {
  const std::int64_t chunks = num_channel_chunks(p);
  const std::int64_t stride = p.tokens + 1;
  // Counts, where the begin of the next token will be.
#pragma omp for schedule(static)
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const std::uint16_t* channels = channels_of(p, index, t, own);
    std::int32_t* end = own.cursor;
    for (std::int64_t c = 0; c < chunks; ++c) end[c] = 0;
    // In ascending order: the last one to write is the last of its chunk.
    for (std::int64_t k = 0; k < p.keep; ++k)
      end[channels[k] / kChunk] = static_cast<std::int32_t>(k + 1);
    std::int32_t before = 0;
    for (std::int64_t c = 0; c < chunks; ++c) {
      const std::int32_t last = end[c] > before ? end[c] : before;
      lists.begin[c * stride + t + 1] = last - before;
      before = last;
    }
  }
#pragma omp single
  {
    std::int32_t next = 0;
    for (std::int64_t c = 0; c < chunks; ++c) {
      std::int32_t* begin = lists.begin + c * stride;
      begin[0] = next;
      for (std::int64_t t = 1; t <= p.tokens; ++t) begin[t] = next += begin[t];
    }
  }
#pragma omp for schedule(static)
  for (std::int64_t t = 0; t < p.tokens; ++t)
    scatter_channels(p, lists, channels_of(p, index, t, own), t, p.tokens);
}

// Cut into chunks of tokens; in each, channel c has the entries [begin[c], begin[c + 1]).
struct ByChannel {
  std::int32_t* begin;   // [chunks, size + 1]
  std::uint8_t* tokens;  // [tokens · keep], counted from the first of the chunk
  float* values;         // [tokens · keep, kValues]
  static constexpr int kValues = 3;
};

ByChannel take_by_channel(const MocProductsProblem& p, Scratch& scratch) {
  ByChannel lists{};
  lists.begin = scratch.take<std::int32_t>(num_token_chunks(p) * (p.size + 1));
  lists.tokens = scratch.take<std::uint8_t>(p.tokens * p.keep);
  lists.values = scratch.take<float>(p.tokens * p.keep * ByChannel::kValues);
  return lists;
}

// The places of the entries of a chunk of tokens. own.cursor: where each channel's begin.
void place_by_channel(const MocProductsProblem& p, const std::uint8_t* index, std::int64_t chunk,
                      const Own& own, const ByChannel& lists) {
  const std::int64_t token = chunk * kChunk;
  const std::int64_t end = smaller(token + kChunk, p.tokens);
  std::int32_t* cursor = own.cursor;
  for (std::int64_t i = 0; i < p.size; ++i) cursor[i] = 0;
  for (std::int64_t t = token; t < end; ++t) {
    const std::uint16_t* channels = channels_of(p, index, t, own);
    for (std::int64_t k = 0; k < p.keep; ++k) ++cursor[channels[k]];
  }
  std::int32_t* begin = lists.begin + chunk * (p.size + 1);
  auto next = static_cast<std::int32_t>(token * p.keep);
  for (std::int64_t i = 0; i < p.size; ++i) {
    begin[i] = next;
    next += cursor[i];
    cursor[i] = begin[i];
  }
  begin[p.size] = next;
}

}  // namespace
}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
