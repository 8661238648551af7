#pragma once

// What the attention kernels are made of: packing of rows, products of tiles in registers. For
// attention_*_cpu.cpp files only (see cpu_kernels.h): internal linkage, no library headers.

#include "kernels/attention/attention_cpu.h"
#include "kernels/elementwise/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTile = kAttentionTile;
// A block of a product that is summed in registers: kBlockRows rows of kBlockVectors vectors.
#if defined(__AVX512F__)
constexpr int kBlockRows = 8;
#else
constexpr int kBlockRows = 4;
#endif
constexpr int kBlockVectors = 2;
constexpr std::int64_t kBlockCols = kBlockVectors * kVectorLanes;
static_assert(kTile % kBlockRows == 0 && kTile % kBlockCols == 0);

constexpr std::int64_t min_of(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
constexpr std::int64_t max_of(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// Rows of scratch matrices have this many elements: whole vectors on every instruction set.
inline std::int64_t padded_head_dim(const AttentionProblem& problem) {
  return round_up(problem.head_dim, 16);
}
inline std::int64_t num_keys(const AttentionProblem& problem) {
  return problem.past + problem.num_queries;
}
inline std::int64_t num_tiles(const AttentionProblem& problem) {
  return (problem.num_queries + kTile - 1) / kTile;
}
// The first key that query `row` of sequence `batch` sees.
inline std::int64_t first_key(const AttentionProblem& problem, std::int64_t batch,
                              std::int64_t row) {
  if (problem.positions == nullptr) return 0;
  const std::int64_t position = problem.positions[batch * problem.num_queries + row];
  return problem.past + row - max_of(0, min_of(position, problem.past + row));
}

// Hands out a thread's scratch memory in pieces of whole cache lines.
class Scratch {
 public:
  explicit Scratch(float* begin) : next_(begin) {}
  float* take(std::int64_t floats) {
    float* piece = next_;
    next_ += round_up(floats, 16);
    return piece;
  }

 private:
  float* next_;
};

inline void zero(float* x, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) x[i] = 0.0f;
}

// to [padded_rows, padded_cols] = factor · from [rows, cols], zeros around it.
inline void pack_rows(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                      float factor, float* to, std::int64_t padded_rows, std::int64_t padded_cols) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* source = from + row * stride;
    float* target = to + row * padded_cols;
#pragma omp simd
    for (std::int64_t i = 0; i < cols; ++i) target[i] = factor * source[i];
    for (std::int64_t i = cols; i < padded_cols; ++i) target[i] = 0.0f;
  }
  zero(to + rows * padded_cols, (padded_rows - rows) * padded_cols);
}

// The lanes that interleave two vectors, from lane `first` of each.
constexpr Lanes interleaved(int first) {
  Lanes lanes{};
  for (int i = 0; i < kVectorLanes; ++i) lanes.lane[i] = first + i / 2 + i % 2 * kVectorLanes;
  return lanes;
}

// A square of kVectorLanes², by log2(kVectorLanes) rounds that interleave its upper and lower half.
inline void transpose_square(const float* from, std::int64_t stride, float* to,
                             std::int64_t to_stride) {
  constexpr Lanes kLow = interleaved(0);
  constexpr Lanes kHigh = interleaved(kVectorLanes / 2);
  const LaneIndex low = __builtin_bit_cast(LaneIndex, kLow);
  const LaneIndex high = __builtin_bit_cast(LaneIndex, kHigh);
  Vector rows[kVectorLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kVectorLanes; ++i) rows[i] = at(from + i * stride);
#pragma GCC unroll 4
  for (int width = 1; width < kVectorLanes; width *= 2) {
    Vector mixed[kVectorLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kVectorLanes / 2; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kVectorLanes / 2], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kVectorLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kVectorLanes; ++i) rows[i] = mixed[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kVectorLanes; ++i) at(to + i * to_stride) = rows[i];
}

// The transpose of from [rows, cols] in panels of kBlockCols rows, each [cols, kBlockCols]: the
// right operand of a product with one column for each row. Missing rows up to a whole tile are 0.
inline void pack_transposed(const float* from, std::int64_t stride, std::int64_t rows,
                            std::int64_t cols, float* to) {
  for (std::int64_t row = 0; row < round_up(rows, kTile); row += kVectorLanes) {
    float* panel = to + row / kBlockCols * kBlockCols * cols + row % kBlockCols;
    std::int64_t col = 0;
    if (row + kVectorLanes <= rows) {
      for (; col + kVectorLanes <= cols; col += kVectorLanes)
        transpose_square(from + row * stride + col, stride, panel + col * kBlockCols, kBlockCols);
    }
    for (; col < cols; ++col) {
      for (std::int64_t i = 0; i < kVectorLanes; ++i)
        panel[col * kBlockCols + i] = row + i < rows ? from[(row + i) * stride + col] : 0.0f;
    }
  }
}

enum class Left { rows, transposed };

// c (+)= a · b for a block of kBlockRows rows and V vectors: a is [kBlockRows, depth], or with
// Left::transposed stored as [depth, kBlockRows]; b is [depth, V vectors].
template <int V, Left L, bool kAdd>
[[gnu::always_inline]] inline void multiply_block(const float* a, std::int64_t a_stride,
                                                  const float* b, std::int64_t b_stride, float* c,
                                                  std::int64_t c_stride, std::int64_t depth) {
  Vector sums[kBlockRows][V];
#pragma GCC unroll 16
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if (kAdd) {
        sums[r][v] = at(c + r * c_stride + v * kVectorLanes);
      } else {
        sums[r][v] = Vector{};
      }
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = at(b + k * b_stride + v * kVectorLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kBlockRows; ++r) {
      const float left = L == Left::rows ? a[r * a_stride + k] : a[k * a_stride + r];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) at(c + r * c_stride + v * kVectorLanes) = sums[r][v];
  }
}

// The first key of the tile starting at `tile_key` that a query seeing `first_key` and later may
// see.
inline std::int64_t first_visible(std::int64_t first_key, std::int64_t tile_key) {
  return max_of(0, min_of(kTile, first_key - tile_key));
}

// How many keys of a tile the kBlockRows queries up to `last_query` (counted from the tile's first
// key) may see.
inline std::int64_t visible_keys(std::int64_t last_query) {
  return max_of(0, min_of(kTile, last_query + 1));
}

// scores [kTile, kTile] = left [rows, depth] · panels, in the blocks that are not wholly above the
// diagonal. `diagonal` is the tile's first query less its first key.
inline void multiply_scores(const float* left, std::int64_t left_stride, const float* panels,
                            std::int64_t depth, std::int64_t rows, std::int64_t diagonal,
                            float* scores) {
  for (std::int64_t col = 0; col < kTile; col += kBlockCols) {
    for (std::int64_t row = 0; row < rows; row += kBlockRows) {
      if (visible_keys(diagonal + row + kBlockRows - 1) <= col) continue;
      multiply_block<kBlockVectors, Left::rows, false>(left + row * left_stride, left_stride,
                                                       panels + col * depth, kBlockCols,
                                                       scores + row * kTile + col, kTile, depth);
    }
  }
}

// c [rows, width] += weights [rows, keys] · b [keys, width], leaving out keys above the diagonal.
template <int V>
inline void add_weighted_columns(const float* weights, const float* b, float* c, std::int64_t width,
                                 std::int64_t rows, std::int64_t diagonal) {
  for (std::int64_t row = 0; row < rows; row += kBlockRows)
    multiply_block<V, Left::rows, true>(weights + row * kTile, kTile, b, width, c + row * width,
                                        width, visible_keys(diagonal + row + kBlockRows - 1));
}

inline void add_weighted(const float* weights, const float* b, float* c, std::int64_t width,
                         std::int64_t rows, std::int64_t diagonal) {
  std::int64_t col = 0;
  for (; col + kBlockCols <= width; col += kBlockCols)
    add_weighted_columns<kBlockVectors>(weights, b + col, c + col, width, rows, diagonal);
  for (; col < width; col += kVectorLanes)
    add_weighted_columns<1>(weights, b + col, c + col, width, rows, diagonal);
}

// c [kTile, width] += weightsᵀ [keys, rows] · b [rows, width], leaving out queries above the
// diagonal.
template <int V>
inline void add_transposed_columns(const float* weights, const float* b, float* c,
                                   std::int64_t width, std::int64_t rows, std::int64_t diagonal) {
  for (std::int64_t key = 0; key < kTile; key += kBlockRows) {
    const std::int64_t first = max_of(0, key - diagonal);
    if (first >= rows) continue;
    multiply_block<V, Left::transposed, true>(weights + first * kTile + key, kTile,
                                              b + first * width, width, c + key * width, width,
                                              rows - first);
  }
}

inline void add_transposed(const float* weights, const float* b, float* c, std::int64_t width,
                           std::int64_t rows, std::int64_t diagonal) {
  std::int64_t col = 0;
  for (; col + kBlockCols <= width; col += kBlockCols)
    add_transposed_columns<kBlockVectors>(weights, b + col, c + col, width, rows, diagonal);
  for (; col < width; col += kVectorLanes)
    add_transposed_columns<1>(weights, b + col, c + col, width, rows, diagonal);
}

}  // namespace
}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
