#pragma once

// What is kept of some tokens, as lists for moc_products_cpu.cpp: by token and by channel. For
// x_cpu.cpp files only (see cpu_kernels.h).

#include "kernels/moc/panels.h"
#include "kernels/moc/products_cpu.h"

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

// Arrays of entries have room for this many behind their end, which may be read.
constexpr std::int64_t kStep = 16;

// What one thread works in.
struct Own {
  float* panel;             // [kChunk, kWidth]
  float* sums;              // [kRows, kWidth]
  float* pending;           // [kPendingFloats]
  std::uint16_t* channels;  // [keep + kStep]
  std::int32_t* cursor;     // [size]
};

Own take_own(const MocProductsProblem& p, Scratch& scratch) {
  Own own{};
  own.panel = scratch.take<float>(kChunk * kWidth);
  own.sums = scratch.take<float>(kRows * kWidth);
  own.pending = scratch.take<float>(kPendingFloats);
  own.channels = scratch.take<std::uint16_t>(p.keep + kStep);
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
  std::uint8_t* channels;  // [tokens · keep], counted from the first of the chunk
};

template <typename T>
T* take_entries(const MocProductsProblem& p, Scratch& scratch) {
  return scratch.take<T>(p.tokens * p.keep + kStep);
}

ByToken take_by_token(const MocProductsProblem& p, Scratch& scratch) {
  ByToken lists{};
  lists.begin = scratch.take<std::int32_t>(num_channel_chunks(p) * (p.tokens + 1));
  lists.channels = take_entries<std::uint8_t>(p, scratch);
  return lists;
}

// For each chunk of channels, work(chunk, how many of the token's channels come before, its first
// entry, how many it has).
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

// Copies a run, in whole steps where so many elements lie within `room`: behind the run, `to` is
// written later.
template <typename To, typename From, typename Convert>
[[gnu::always_inline]] inline void copy_run(const From* from, std::int64_t count, std::int64_t room,
                                            To* to, const Convert& convert) {
  if (blocks_of(count, kStep) * kStep > room) {
    for (std::int64_t k = 0; k < count; ++k) to[k] = convert(from[k]);
    return;
  }
  for (std::int64_t k = 0; k < count; k += kStep) {
#pragma omp simd
    for (std::int64_t i = 0; i < kStep; ++i) to[k + i] = convert(from[k + i]);
  }
}

constexpr auto kAsIs = [](float x) { return x; };

// Values in the order of the lists to `rows` [tokens, keep]. By all threads together.
void gather(const MocProductsProblem& p, const ByToken& lists, const float* values, float* rows) {
#pragma omp for schedule(static)
  for (std::int64_t chunk = 0; chunk < num_token_chunks(p); ++chunk) {
    const std::int64_t token = chunk * kChunk;
    const std::int64_t end = smaller(token + kChunk, p.tokens);
    for (std::int64_t t = token; t < end; ++t) {
      for_each_run(p, lists, t,
                   [&](std::int64_t, std::int64_t before, std::int64_t begin, std::int64_t count) {
                     copy_run(values + begin, count, (end - t) * p.keep - before,
                              rows + t * p.keep + before, kAsIs);
                   });
    }
  }
}

// The reverse, of the channels and of up to two arrays (the second may be null).
struct Scattered {
  const float* rows;
  float* values;
};
void scatter(const MocProductsProblem& p, const std::uint8_t* index, const Own& own,
             const ByToken& lists, const Scattered& first, const Scattered& second) {
#pragma omp for schedule(static)
  for (std::int64_t chunk = 0; chunk < num_token_chunks(p); ++chunk) {
    const std::int64_t token = chunk * kChunk;
    const std::int64_t end = smaller(token + kChunk, p.tokens);
    for (std::int64_t t = token; t < end; ++t) {
      const std::uint16_t* channels = channels_of(p, index, t, own);
      for_each_run(
          p, lists, t,
          [&](std::int64_t c, std::int64_t before, std::int64_t begin, std::int64_t count) {
            const std::int64_t from = t * p.keep + before;
            // To write over, in the entries of this block of tokens, and to read.
            const std::int64_t room =
                smaller(lists.begin[c * (p.tokens + 1) + end] - begin, p.tokens * p.keep - from);
            const auto base = static_cast<std::uint16_t>(c * kChunk);
            copy_run(channels + before, count, room, lists.channels + begin,
                     [&](std::uint16_t i) { return static_cast<std::uint8_t>(i - base); });
            copy_run(first.rows + from, count, room, first.values + begin, kAsIs);
            if (second.rows != nullptr)
              copy_run(second.rows + from, count, room, second.values + begin, kAsIs);
          });
    }
  }
}

// lists.begin. By all threads together.
void place_by_token(const MocProductsProblem& p, const std::uint8_t* index, const Own& own,
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
}

// Cut into chunks of tokens; in each, channel c has the entries [begin[c], begin[c + 1]).
struct ByChannel {
  std::int32_t* begin;   // [chunks, size + 1]
  std::uint8_t* tokens;  // [tokens · keep], counted from the first of the chunk
  static constexpr int kValues = 3;
  float* values[kValues];  // [tokens · keep] each
};

ByChannel take_by_channel(const MocProductsProblem& p, Scratch& scratch) {
  ByChannel lists{};
  lists.begin = scratch.take<std::int32_t>(num_token_chunks(p) * (p.size + 1));
  lists.tokens = scratch.take<std::uint8_t>(p.tokens * p.keep);
  for (float*& values : lists.values) values = scratch.take<float>(p.tokens * p.keep);
  return lists;
}

// The entries of a chunk of tokens by their channels, each with one of the three arrays' values. A
// chunk of channels after the other: what is written at a time stays in the first-level cache.
void turn(const MocProductsProblem& p, const ByToken& by_token, std::int64_t chunk, const Own& own,
          const float* const (&values)[ByChannel::kValues], const ByChannel& lists) {
  const std::int64_t token = chunk * kChunk;
  const std::int64_t tokens = smaller(kChunk, p.tokens - token);
  std::int32_t* to = lists.begin + chunk * (p.size + 1);
  auto next = static_cast<std::int32_t>(token * p.keep);
  for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
    const std::int32_t* begin = by_token.begin + c * (p.tokens + 1) + token;
    const std::int64_t count = smaller(kChunk, p.size - c * kChunk);
    std::int32_t* cursor = own.cursor;
    for (std::int64_t i = 0; i < count; ++i) cursor[i] = 0;
    for (std::int64_t e = begin[0]; e < begin[tokens]; ++e) ++cursor[by_token.channels[e]];
    for (std::int64_t i = 0; i < count; ++i) {
      *to++ = next;
      next += cursor[i];
      cursor[i] = to[-1];
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t e = begin[t]; e < begin[t + 1]; ++e) {
        const std::int64_t place = cursor[by_token.channels[e]]++;
        lists.tokens[place] = static_cast<std::uint8_t>(t);
        for (int i = 0; i < ByChannel::kValues; ++i) lists.values[i][place] = values[i][e];
      }
    }
  }
  *to = next;
}

}  // namespace
}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
