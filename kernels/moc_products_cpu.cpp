#include "kernels/moc_products_cpu.h"

#include <omp.h>

#include "kernels/vector_math.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Each product is a walk over lists of kept entries. It is cut so that what the entries of a list
// point at lies in the first-level cache and what the list belongs to in registers: `kWidth`
// columns of the hidden dimension at a time, packed, of kChunk channels (or tokens). Per entry that
// leaves one load for each multiplication, which is what the processor can do.

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kLanes = kVectorLanes;
constexpr std::int64_t kVectors = 8;  // of a row of a panel
constexpr std::int64_t kWidth = kVectors * kLanes;
constexpr std::int64_t kChunk = 8192 / kWidth;  // rows of a panel of 32 KiB
// Rows whose sums stay in the second-level cache.
constexpr std::int64_t kRows = 65536 / kWidth;

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef std::int32_t LaneIndex __attribute__((vector_size(4 * kLanes)));

Vector& at(float* x) {
  return *reinterpret_cast<Vector*>(x);
}
const Vector& at(const float* x) {
  return *reinterpret_cast<const Vector*>(x);
}

std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
std::int64_t blocks_of(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

// ---- Shuffles ------------------------------------------------------------------------------

struct Lanes {
  std::int32_t lane[kLanes];
};
// Of two vectors, the lower (upper) one of each two neighbouring groups of `width` lanes.
constexpr Lanes groups(int width, bool upper) {
  Lanes lanes{};
  for (int i = 0; i < kLanes; ++i) {
    const bool second = (i & width) != 0;
    lanes.lane[i] = upper ? (second ? i + kLanes : i + width) : (second ? i - width + kLanes : i);
  }
  return lanes;
}
template <int kGroup>
[[gnu::always_inline]] inline Vector lower_groups(Vector a, Vector b) {
  constexpr Lanes kWhich = groups(kGroup, false);
  return __builtin_shuffle(a, b, __builtin_bit_cast(LaneIndex, kWhich));
}
template <int kGroup>
[[gnu::always_inline]] inline Vector upper_groups(Vector a, Vector b) {
  constexpr Lanes kWhich = groups(kGroup, true);
  return __builtin_shuffle(a, b, __builtin_bit_cast(LaneIndex, kWhich));
}

// Lane i becomes the sum of v[i], in kGroup · 2 vectors at v.
template <int kGroup = kLanes / 2>
[[gnu::always_inline]] inline Vector sums_of(Vector* v) {
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i)
    v[i] = lower_groups<kGroup>(v[i], v[i + kGroup]) + upper_groups<kGroup>(v[i], v[i + kGroup]);
  if constexpr (kGroup == 1) {
    return v[0];
  } else {
    return sums_of<kGroup / 2>(v);
  }
}

template <int kGroup = kLanes / 2>
[[gnu::always_inline]] inline void transpose(Vector* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kGroup) != 0) continue;
    const Vector lower = lower_groups<kGroup>(v[i], v[i + kGroup]);
    v[i + kGroup] = upper_groups<kGroup>(v[i], v[i + kGroup]);
    v[i] = lower;
  }
  if constexpr (kGroup > 1) transpose<kGroup / 2>(v);
}

// ---- Panels --------------------------------------------------------------------------------

void clear(float* x, std::int64_t count) {
  __builtin_memset(x, 0, static_cast<std::size_t>(count) * sizeof(float));
}

// Columns of the hidden dimension that lie in a panel; the others of the last panel are zeros.
struct Columns {
  std::int64_t first;
  std::int64_t count;
};
Columns columns_of(std::int64_t hidden, std::int64_t block) {
  return {block * kWidth, smaller(kWidth, hidden - block * kWidth)};
}

// Of a matrix [·, hidden], rows [first, first + count), to panel [count, kWidth].
void pack(const float* matrix, std::int64_t hidden, std::int64_t first, std::int64_t count,
          const Columns& columns, float* panel) {
  for (std::int64_t r = 0; r < count; ++r) {
    const float* from = matrix + (first + r) * hidden + columns.first;
    float* to = panel + r * kWidth;
    if (columns.count == kWidth) {
#pragma GCC unroll 8
      for (std::int64_t v = 0; v < kWidth; v += kLanes) at(to + v) = at(from + v);
    } else {
      for (std::int64_t c = 0; c < kWidth; ++c) to[c] = c < columns.count ? from[c] : 0.0f;
    }
  }
}

void store(const float* panel, std::int64_t hidden, std::int64_t first, std::int64_t count,
           const Columns& columns, float* matrix) {
  for (std::int64_t r = 0; r < count; ++r) {
    float* to = matrix + (first + r) * hidden + columns.first;
    const float* from = panel + r * kWidth;
    for (std::int64_t c = 0; c < columns.count; ++c) to[c] = from[c];
  }
}

void add(const float* panel, std::int64_t hidden, std::int64_t first, std::int64_t count,
         const Columns& columns, float* matrix) {
  for (std::int64_t r = 0; r < count; ++r) {
    float* to = matrix + (first + r) * hidden + columns.first;
    const float* from = panel + r * kWidth;
#pragma omp simd
    for (std::int64_t c = 0; c < columns.count; ++c) to[c] += from[c];
  }
}

// Calls full(row of the panel, column of the panel) for each square of kLanes rows and columns
// inside, and single(…) for each element of the others.
template <typename Full, typename Single>
[[gnu::always_inline]] inline void for_each_square(std::int64_t rows, std::int64_t columns,
                                                   const Full& full, const Single& single) {
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    for (std::int64_t r = 0; r < rows; r += kLanes) {
      if (r + kLanes <= rows && c + kLanes <= columns) {
        full(r, c);
        continue;
      }
      for (std::int64_t j = c; j < smaller(c + kLanes, columns); ++j) {
        for (std::int64_t i = r; i < smaller(r + kLanes, rows); ++i) single(i, j);
      }
    }
  }
}

// The same of a matrix [hidden, size] whose columns [first, first + count) become the panel's rows.
void pack_transposed(const float* matrix, std::int64_t size, std::int64_t first,
                     std::int64_t count, const Columns& columns, float* panel) {
  const float* from = matrix + columns.first * size + first;
  if (columns.count < kWidth) clear(panel, count * kWidth);
  for_each_square(
      count, columns.count,
      [&](std::int64_t r, std::int64_t c) {
        Vector v[kLanes];
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) v[i] = at(from + (c + i) * size + r);
        transpose(v);
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) at(panel + (r + i) * kWidth + c) = v[i];
      },
      [&](std::int64_t r, std::int64_t c) { panel[r * kWidth + c] = from[c * size + r]; });
}

void add_transposed(const float* panel, std::int64_t size, std::int64_t first, std::int64_t count,
                    const Columns& columns, float* matrix) {
  float* to = matrix + columns.first * size + first;
  for_each_square(
      count, columns.count,
      [&](std::int64_t r, std::int64_t c) {
        Vector v[kLanes];
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) v[i] = at(panel + (r + i) * kWidth + c);
        transpose(v);
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) at(to + (c + i) * size + r) += v[i];
      },
      [&](std::int64_t r, std::int64_t c) { to[c * size + r] += panel[r * kWidth + c]; });
}

// ---- The two inner loops -------------------------------------------------------------------

// The lists of some rows: those of row r are the entries [begin[r], end[r]); `ids` says for each
// entry which row of the panel it means, counted from `first`.
struct Lists {
  std::int64_t rows;
  const std::int32_t* begin;
  const std::int32_t* end;
  const std::uint16_t* ids;
  std::int64_t first;
};

// sums [rows, kWidth] += Σ over a row's entries of values[entry] · panel[id].
void add_scaled(const Lists& lists, const float* values, const float* panel, float* sums) {
  for (std::int64_t r = 0; r < lists.rows; ++r) {
    float* row = sums + r * kWidth;
    Vector sum[kVectors];
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < kVectors; ++v) sum[v] = at(row + v * kLanes);
    const std::int64_t end = lists.end[r];
    for (std::int64_t e = lists.begin[r]; e < end; ++e) {
      const float* x = panel + (lists.ids[e] - lists.first) * kWidth;
      const Vector factor = Vector{} + values[e];
#pragma GCC unroll 8
      for (std::int64_t v = 0; v < kVectors; ++v) sum[v] += factor * at(x + v * kLanes);
    }
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < kVectors; ++v) at(row + v * kLanes) = sum[v];
  }
}

// Products whose lanes are still to be summed: as many as come before the next row begins.
constexpr std::int64_t kPending = 4 * kLanes;
constexpr std::int64_t kPendingFloats = (kPending + kChunk) * kLanes;

// Lane i: the sum of the i-th vector.
[[gnu::always_inline]] inline Vector sums_at(const float* vectors) {
  Vector v[kLanes];
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kLanes; ++i) v[i] = at(vectors + i * kLanes);
  return sums_of(v);
}

// dots += rows[r] · panel[id] of each entry, one after the other. rows: [rows, kWidth].
void add_dots(const Lists& lists, const float* rows, const float* panel, float* pending,
              float* dots) {
  float* next = pending;
  for (std::int64_t r = 0; r < lists.rows; ++r) {
    Vector row[kVectors];
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < kVectors; ++v) row[v] = at(rows + r * kWidth + v * kLanes);
    const std::int64_t end = lists.end[r];
    for (std::int64_t e = lists.begin[r]; e < end; ++e) {
      const float* x = panel + (lists.ids[e] - lists.first) * kWidth;
      Vector even = row[0] * at(x);
      Vector odd = row[1] * at(x + kLanes);
#pragma GCC unroll 8
      for (std::int64_t v = 2; v < kVectors; v += 2) {
        even += row[v] * at(x + v * kLanes);
        odd += row[v + 1] * at(x + (v + 1) * kLanes);
      }
      at(next) = even + odd;
      next += kLanes;
    }
    if (next - pending < kPending * kLanes && r + 1 < lists.rows) continue;
    float* from = pending;
    for (; next - from >= kLanes * kLanes; from += kLanes * kLanes, dots += kLanes)
      at(dots) += sums_at(from);
    // What is left moves to the front.
    const std::int64_t left = next - from;
    for (std::int64_t i = 0; i < left; i += kLanes) at(pending + i) = at(from + i);
    next = pending + left;
  }
  const std::int64_t left = (next - pending) / kLanes;
  if (left == 0) return;
  clear(next, (kLanes - left) * kLanes);
  const Vector sums = sums_at(pending);
  for (std::int64_t i = 0; i < left; ++i) dots[i] += reinterpret_cast<const float*>(&sums)[i];
}

// ---- What is kept, as lists ----------------------------------------------------------------

std::int64_t num_channel_chunks(const MocProductsProblem& p) {
  return blocks_of(p.size, kChunk);
}
std::int64_t num_token_chunks(const MocProductsProblem& p) {
  return blocks_of(p.tokens, kChunk);
}
std::int64_t num_hidden_blocks(const MocProductsProblem& p) {
  return blocks_of(p.hidden, kWidth);
}

// Entry t · keep + k is the k-th kept channel of token t. Of a chunk of channels a token has the
// entries [begin[chunk][t], begin[chunk + 1][t]).
struct ByToken {
  const std::uint16_t* channels;  // [tokens, keep]
  std::int32_t* begin;            // [chunks + 1, tokens]
  // Dot products are made one chunk after the other, and in there one token after the other: where
  // a token's begin, counted from where the chunk's begin.
  std::int32_t* dots;       // [chunks, tokens]
  std::int32_t* num_dots;   // [chunks]
  std::int32_t* first_dot;  // [chunks]
};

// Of a chunk of tokens, whose entries lie together, a channel has the entries [begin[chunk][c],
// begin[chunk][c + 1]).
struct ByChannel {
  std::int32_t* begin;    // [chunks, size + 1]
  std::uint16_t* tokens;  // [tokens · keep], counted from the first of the chunk
  float* product;         // [tokens · keep] each
  float* dgate;
  float* dup;
};

// What one thread works in.
struct Own {
  float* panel;           // [kChunk, kWidth]
  float* sums;            // [kRows, kWidth]
  float* pending;         // [kPendingFloats]
  float* row;             // [keep + kLanes]
  float* product;         // [keep]
  std::uint16_t* channels;  // [keep + kLanes]
  std::int32_t* cursor;   // [size + 1]
};

struct Scratch {
  float* base;  // null: only counted
  std::int64_t floats = 0;

  template <typename T>
  T* take(std::int64_t count) {
    constexpr std::int64_t kLine = 16;
    const auto bytes = count * static_cast<std::int64_t>(sizeof(T));
    float* result = base == nullptr ? nullptr : base + floats;
    floats += blocks_of(bytes, kLine * 4) * kLine;
    return reinterpret_cast<T*>(result);
  }
};

Own take_own(const MocProductsProblem& p, Scratch& scratch) {
  return {scratch.take<float>(kChunk * kWidth),       scratch.take<float>(kRows * kWidth),
          scratch.take<float>(kPendingFloats),        scratch.take<float>(p.keep + kLanes),
          scratch.take<float>(p.keep),                scratch.take<std::uint16_t>(p.keep + kLanes),
          scratch.take<std::int32_t>(p.size + 1)};
}

#if defined(__AVX512F__)
// Up to 16 elements more than `keep` are written.
void list_bits(const std::uint8_t* bytes, std::int64_t num_bytes, std::uint16_t* channels) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (std::int64_t b = 0; b < num_bytes; b += 2) {
    const unsigned bits = bytes[b] | (b + 1 < num_bytes ? bytes[b + 1] << 8 : 0);
    const __m512i all = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(b) * 8));
    const __m512i kept = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(channels), _mm512_maskz_cvtepi32_epi16(0xffff, kept));
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

// `channels` [tokens, keep] receives what a bitmap says.
void list_channels(const MocProductsProblem& p, const std::uint8_t* index, const Own& own,
                   std::uint16_t* channels) {
  const auto bytes = static_cast<std::size_t>(p.keep) * sizeof(std::uint16_t);
#pragma omp for schedule(static)
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    list_bits(index + t * p.index_bytes, p.index_bytes, own.channels);
    __builtin_memcpy(channels + t * p.keep, own.channels, bytes);
  }
}

void list_by_token(const MocProductsProblem& p, const Own& own, const ByToken& lists) {
  const std::int64_t chunks = num_channel_chunks(p);
#pragma omp for schedule(static)
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const std::uint16_t* channels = lists.channels + t * p.keep;
    std::int32_t* end = own.cursor;
    for (std::int64_t c = 0; c < chunks; ++c) end[c] = 0;
    // In ascending order: the last one to write is the last of its chunk.
    for (std::int64_t k = 0; k < p.keep; ++k)
      end[channels[k] / kChunk] = static_cast<std::int32_t>(k + 1);
    std::int32_t last = 0;
    for (std::int64_t c = 0; c < chunks; ++c) {
      lists.begin[c * p.tokens + t] = static_cast<std::int32_t>(t * p.keep) + last;
      last = end[c] > last ? end[c] : last;
    }
    lists.begin[chunks * p.tokens + t] = static_cast<std::int32_t>((t + 1) * p.keep);
  }
#pragma omp for schedule(static)
  for (std::int64_t c = 0; c < chunks; ++c) {
    std::int32_t count = 0;
    for (std::int64_t t = c * p.tokens; t < (c + 1) * p.tokens; ++t) {
      lists.dots[t] = count;
      count += lists.begin[t + p.tokens] - lists.begin[t];
    }
    lists.num_dots[c] = count;
  }
#pragma omp single
  {
    std::int32_t first = 0;
    for (std::int64_t c = 0; c < chunks; ++c) {
      lists.first_dot[c] = first;
      first += lists.num_dots[c];
    }
  }
}

// A token's dot products in the order of its channels. The row may be written behind its end.
void collect_dots(const MocProductsProblem& p, const ByToken& lists, const float* dots,
                  std::int64_t token, float* row) {
  for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
    const std::int64_t i = c * p.tokens + token;
    const float* from = dots + lists.first_dot[c] + lists.dots[i];
    const std::int64_t count = lists.begin[i + p.tokens] - lists.begin[i];
    for (std::int64_t k = 0; k < count; k += kLanes) at(row + k) = at(from + k);
    row += count;
  }
}

// ---- Products ------------------------------------------------------------------------------

// dots: of each entry, rows [tokens, hidden] of its token times the row of `weight` of its channel
// ([size, hidden], or transposed). operand: [tokens, kWidth].
void write_dots(const MocProductsProblem& p, const ByToken& lists, const float* rows,
                const float* weight, bool transposed, float* operand, const Own& own,
                float* dots) {
  for (std::int64_t h = 0; h < num_hidden_blocks(p); ++h) {
    const Columns columns = columns_of(p.hidden, h);
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < p.tokens; t += kChunk)
      pack(rows, p.hidden, t, smaller(kChunk, p.tokens - t), columns, operand + t * kWidth);
#pragma omp for schedule(dynamic)
    for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
      const std::int64_t first = c * kChunk;
      const std::int64_t count = smaller(kChunk, p.size - first);
      float* mine = dots + lists.first_dot[c];
      if (h == 0) clear(mine, lists.num_dots[c]);
      if (lists.num_dots[c] == 0) continue;
      transposed ? pack_transposed(weight, p.size, first, count, columns, own.panel)
                 : pack(weight, p.hidden, first, count, columns, own.panel);
      const std::int32_t* begin = lists.begin + c * p.tokens;
      add_dots({p.tokens, begin, begin + p.tokens, lists.channels, first}, operand, own.panel,
               own.pending, mine);
    }
  }
}

// Of the entries: a factor each, for the row of `weight` of its channel.
struct Scaled {
  const float* values;
  const float* weight;  // [size, hidden], or transposed
  bool transposed;
};

// Tokens that are summed together: enough to pay for packing the weights, few enough for all
// threads to have work. The sums are the same for any number.
std::int64_t tokens_at_a_time(const MocProductsProblem& p) {
  constexpr std::int64_t kFewest = 2 * kChunk;
  const std::int64_t pieces = blocks_of(2 * p.threads, num_hidden_blocks(p));
  const std::int64_t wanted = smaller(blocks_of(p.tokens, pieces), kRows);
  return wanted < kFewest ? smaller(kFewest, kRows) : wanted;
}

// out [tokens, hidden]: the sum over a token's entries and over `scaled`, of which there are
// `num_scaled`.
void write_sums(const MocProductsProblem& p, const ByToken& lists, const Scaled* scaled,
                int num_scaled, const Own& own, float* out) {
  const std::int64_t piece = tokens_at_a_time(p);
  const std::int64_t pieces = blocks_of(p.tokens, piece);
#pragma omp for schedule(dynamic)
  for (std::int64_t task = 0; task < pieces * num_hidden_blocks(p); ++task) {
    const Columns columns = columns_of(p.hidden, task / pieces);
    const std::int64_t token = task % pieces * piece;
    const std::int64_t tokens = smaller(piece, p.tokens - token);
    clear(own.sums, tokens * kWidth);
    for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
      const std::int64_t first = c * kChunk;
      const std::int64_t count = smaller(kChunk, p.size - first);
      const std::int32_t* begin = lists.begin + c * p.tokens + token;
      for (int i = 0; i < num_scaled; ++i) {
        scaled[i].transposed
            ? pack_transposed(scaled[i].weight, p.size, first, count, columns, own.panel)
            : pack(scaled[i].weight, p.hidden, first, count, columns, own.panel);
        add_scaled({tokens, begin, begin + p.tokens, lists.channels, first}, scaled[i].values,
                   own.panel, own.sums);
      }
    }
    store(own.sums, p.hidden, token, tokens, columns, out);
  }
}

// A weight's gradient: of each entry, a value times `rows` [tokens, hidden] of its token.
struct WeightGradient {
  const float* values;
  const float* rows;
  float* gradient;  // [size, hidden], or transposed
  bool transposed;
};

void add_weight_gradients(const MocProductsProblem& p, const ByChannel& lists,
                          const WeightGradient* gradients, int num_gradients, const Own& own) {
  // As many channels at a time as there is room for, in pieces alike.
  const std::int64_t pieces = blocks_of(p.size, kRows);
  const std::int64_t piece = blocks_of(blocks_of(p.size, pieces), kLanes) * kLanes;
  const std::int64_t tasks = pieces * num_hidden_blocks(p);
#pragma omp for schedule(dynamic)
  for (std::int64_t task = 0; task < tasks * num_gradients; ++task) {
    const WeightGradient& g = gradients[task / tasks];
    const Columns columns = columns_of(p.hidden, task % tasks / pieces);
    const std::int64_t channel = task % pieces * piece;
    const std::int64_t channels = smaller(piece, p.size - channel);
    if (channels <= 0) continue;
    clear(own.sums, channels * kWidth);
    for (std::int64_t c = 0; c < num_token_chunks(p); ++c) {
      const std::int64_t token = c * kChunk;
      pack(g.rows, p.hidden, token, smaller(kChunk, p.tokens - token), columns, own.panel);
      const std::int32_t* begin = lists.begin + c * (p.size + 1) + channel;
      add_scaled({channels, begin, begin + 1, lists.tokens, 0}, g.values, own.panel, own.sums);
    }
    g.transposed ? add_transposed(own.sums, p.size, channel, channels, columns, g.gradient)
                 : add(own.sums, p.hidden, channel, channels, columns, g.gradient);
  }
}

// ---- Passes --------------------------------------------------------------------------------

struct Forward {
  ByToken lists;
  std::uint16_t* channels;  // null: kept.index has them
  float* dots;
  float* product;  // null: kept.product
  float* operand;
  Own own;  // of `thread`
};

struct Backward {
  ByToken lists;
  ByChannel by_channel;
  std::uint16_t* channels;
  float* dots;
  float* dgate;
  float* dup;
  float* operand;
  Own own;
};

// The part of the scratch memory that both passes have.
template <typename Pass>
void take_lists(const MocProductsProblem& p, Scratch& scratch, Pass& pass) {
  const std::int64_t chunks = num_channel_chunks(p);
  const std::int64_t entries = p.tokens * p.keep;
  pass.channels = p.bitmap ? scratch.take<std::uint16_t>(entries) : nullptr;
  pass.lists.begin = scratch.take<std::int32_t>((chunks + 1) * p.tokens);
  pass.lists.dots = scratch.take<std::int32_t>(chunks * p.tokens);
  pass.lists.num_dots = scratch.take<std::int32_t>(chunks);
  pass.lists.first_dot = scratch.take<std::int32_t>(chunks);
  pass.dots = scratch.take<float>(entries + kLanes);
  pass.operand = scratch.take<float>(p.tokens * kWidth);
}

Forward take_forward(const MocProductsProblem& p, Scratch& scratch, int thread) {
  Forward pass{};
  take_lists(p, scratch, pass);
  pass.product = scratch.take<float>(p.tokens * p.keep);
  for (int i = 0; i <= thread; ++i) pass.own = take_own(p, scratch);
  return pass;
}

Backward take_backward(const MocProductsProblem& p, Scratch& scratch, int thread) {
  Backward pass{};
  const std::int64_t entries = p.tokens * p.keep;
  take_lists(p, scratch, pass);
  pass.dgate = scratch.take<float>(entries);
  pass.dup = scratch.take<float>(entries);
  pass.by_channel.begin = scratch.take<std::int32_t>(num_token_chunks(p) * (p.size + 1));
  pass.by_channel.tokens = scratch.take<std::uint16_t>(entries);
  pass.by_channel.product = scratch.take<float>(entries);
  pass.by_channel.dgate = scratch.take<float>(entries);
  pass.by_channel.dup = scratch.take<float>(entries);
  for (int i = 0; i <= thread; ++i) pass.own = take_own(p, scratch);
  return pass;
}

std::int64_t forward_scratch_floats(const MocProductsProblem& p) {
  Scratch scratch{nullptr};
  take_forward(p, scratch, p.threads - 1);
  return scratch.floats;
}
std::int64_t backward_scratch_floats(const MocProductsProblem& p) {
  Scratch scratch{nullptr};
  take_backward(p, scratch, p.threads - 1);
  return scratch.floats;
}

template <typename Pass>
void list_kept(const MocProductsProblem& p, const std::uint8_t* index, Pass& pass) {
  pass.lists.channels =
      p.bitmap ? pass.channels : reinterpret_cast<const std::uint16_t*>(index);
  if (p.bitmap) list_channels(p, index, pass.own, pass.channels);
  list_by_token(p, pass.own, pass.lists);
}

void activate(const MocProductsProblem& p, const MocProductsKept& kept, const Forward& pass,
              float* product) {
#pragma omp for schedule(static)
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const std::int64_t first = t * p.keep;
    collect_dots(p, pass.lists, pass.dots, t, pass.own.row);
    const float* gate = kept.gate + first;
    const float* up = pass.own.row;
    float* z = product + first;
    float* s = kept.silu == nullptr ? pass.own.product : kept.silu + first;
#pragma omp simd
    for (std::int64_t k = 0; k < p.keep; ++k) {
      s[k] = gate[k] * sigmoid_of(gate[k]);
      z[k] = s[k] * up[k];
    }
    __builtin_memcpy(kept.up + first, up, static_cast<std::size_t>(p.keep) * sizeof(float));
  }
}

void forward(const MocProductsProblem& p, const float* x, const MocProductsWeights& weights,
             const MocProductsKept& kept, float* out, float* memory) {
#pragma omp parallel num_threads(p.threads)
  {
    Scratch scratch{memory};
    Forward pass = take_forward(p, scratch, omp_get_thread_num());
    float* product = kept.product == nullptr ? pass.product : kept.product;
    list_kept(p, kept.index, pass);
    write_dots(p, pass.lists, x, weights.up, false, pass.operand, pass.own, pass.dots);
    activate(p, kept, pass, product);
    const Scaled down = {product, weights.down, true};
    write_sums(p, pass.lists, &down, 1, pass.own, out);
  }
}

// The entries' gradients, by token and by channel.
void differentiate(const MocProductsProblem& p, const MocProductsKept& kept, const Backward& pass) {
  const ByChannel& lists = pass.by_channel;
  std::int32_t* cursor = pass.own.cursor;
  float* product = pass.own.product;
#pragma omp for schedule(static)
  for (std::int64_t chunk = 0; chunk < num_token_chunks(p); ++chunk) {
    const std::int64_t token = chunk * kChunk;
    const std::int64_t end = smaller(token + kChunk, p.tokens);
    for (std::int64_t i = 0; i < p.size; ++i) cursor[i] = 0;
    for (std::int64_t e = token * p.keep; e < end * p.keep; ++e) ++cursor[pass.lists.channels[e]];
    std::int32_t* begin = lists.begin + chunk * (p.size + 1);
    auto next = static_cast<std::int32_t>(token * p.keep);
    for (std::int64_t i = 0; i < p.size; ++i) {
      begin[i] = next;
      next += cursor[i];
      cursor[i] = begin[i];
    }
    begin[p.size] = next;
    for (std::int64_t t = token; t < end; ++t) {
      const std::int64_t first = t * p.keep;
      collect_dots(p, pass.lists, pass.dots, t, pass.own.row);
      const float* d = pass.own.row;
      const float* gate = kept.gate + first;
      const float* up = kept.up + first;
      float* dgate = pass.dgate + first;
      float* dup = pass.dup + first;
#pragma omp simd
      for (std::int64_t k = 0; k < p.keep; ++k) {
        const float sigmoid = sigmoid_of(gate[k]);
        const float silu = gate[k] * sigmoid;
        dgate[k] = d[k] * up[k] * (sigmoid + silu * (1.0f - sigmoid));
        dup[k] = d[k] * silu;
        product[k] = silu * up[k];
      }
      const std::uint16_t* channels = pass.lists.channels + first;
      for (std::int64_t k = 0; k < p.keep; ++k) {
        const std::int32_t to = cursor[channels[k]]++;
        lists.tokens[to] = static_cast<std::uint16_t>(t - token);
        lists.product[to] = product[k];
        lists.dgate[to] = dgate[k];
        lists.dup[to] = dup[k];
      }
    }
  }
}

void backward(const MocProductsProblem& p, const float* dout, const float* x,
              const MocProductsWeights& weights, const MocProductsKept& kept,
              const MocProductsGradients& gradients, float* dx, float* memory) {
#pragma omp parallel num_threads(p.threads)
  {
    Scratch scratch{memory};
    Backward pass = take_backward(p, scratch, omp_get_thread_num());
    list_kept(p, kept.index, pass);
    write_dots(p, pass.lists, dout, weights.down, true, pass.operand, pass.own, pass.dots);
    differentiate(p, kept, pass);
    const ByChannel& by_channel = pass.by_channel;
    WeightGradient wanted[3];
    int count = 0;
    if (gradients.down != nullptr)
      wanted[count++] = {by_channel.product, dout, gradients.down, true};
    if (gradients.gate != nullptr) wanted[count++] = {by_channel.dgate, x, gradients.gate, false};
    if (gradients.up != nullptr) wanted[count++] = {by_channel.dup, x, gradients.up, false};
    // x is read before dx, which may be x, is written.
    add_weight_gradients(p, by_channel, wanted, count, pass.own);
    const Scaled input[] = {{pass.dgate, weights.gate, false}, {pass.dup, weights.up, false}};
    write_sums(p, pass.lists, input, 2, pass.own, dx);
  }
}

}  // namespace

const MocProductsKernels moc_products_kernels = {forward_scratch_floats, backward_scratch_floats,
                                                 forward, backward};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
