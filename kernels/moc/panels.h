#pragma once

// The arithmetic of moc_products_cpu.cpp: packed panels of matrices and the two loops over lists of
// kept entries. For x_cpu.cpp files only (see cpu_kernels.h).
//
// Each product is a walk over lists of kept entries. It is cut so that what the entries of a list
// point at lies in the first-level cache and what the list belongs to in registers: `kWidth`
// columns of the hidden dimension at a time, packed, of kChunk channels (or tokens). Per entry that
// leaves one load for each multiplication, which is what the processor can do.

#include "kernels/elementwise/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kLanes = kVectorLanes;
constexpr std::int64_t kVectors = 8;  // of a row of a panel
constexpr std::int64_t kWidth = kVectors * kLanes;
constexpr std::int64_t kChunk = 8192 / kWidth;  // rows of a panel of 32 KiB
// Rows whose sums stay in the second-level cache.
constexpr std::int64_t kRows = 65536 / kWidth;

std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
std::int64_t blocks_of(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

// ---- Shuffles ------------------------------------------------------------------------------

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
void pack_transposed(const float* matrix, std::int64_t size, std::int64_t first, std::int64_t count,
                     const Columns& columns, float* panel) {
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

// The lists of some rows: those of row r are the entries [begin[r], begin[r + 1]); `ids` says for
// each entry which row of the panel it means.
struct Lists {
  std::int64_t rows;
  const std::int32_t* begin;
  const std::uint8_t* ids;
};
static_assert(kChunk <= 256);

// sums [rows, kWidth] += Σ over a row's entries of values[entry] · panel[id].
void add_scaled(const Lists& lists, const float* values, const float* panel, float* sums) {
  const auto [rows, begin, ids] = lists;
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = sums + r * kWidth;
    Vector sum[kVectors];
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < kVectors; ++v) sum[v] = at(row + v * kLanes);
    const std::int64_t end = begin[r + 1];
    for (std::int64_t e = begin[r]; e < end; ++e) {
      const float* x = panel + ids[e] * kWidth;
      const Vector factor = values[e] - Vector{};  // in all lanes
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

// dots[entry] += rows[r] · panel[id], where rows of kWidth elements are `stride` apart.
void add_dots(const Lists& lists, const float* rows, std::int64_t stride, const float* panel,
              float* pending, float* dots) {
  const auto [num_rows, begin, ids] = lists;
  float* next = pending;
  dots += begin[0];
  for (std::int64_t r = 0; r < num_rows; ++r) {
    Vector row[kVectors];
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < kVectors; ++v) row[v] = at(rows + r * stride + v * kLanes);
    const std::int64_t end = begin[r + 1];
    for (std::int64_t e = begin[r]; e < end; ++e) {
      const float* x = panel + ids[e] * kWidth;
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
    if (next - pending < kPending * kLanes && r + 1 < num_rows) continue;
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
  const Vector sums = sums_at(pending);  // the other lanes are of what was there before
  for (std::int64_t i = 0; i < left; ++i) dots[i] += reinterpret_cast<const float*>(&sums)[i];
}

}  // namespace
}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
