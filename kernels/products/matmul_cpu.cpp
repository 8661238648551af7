#include "kernels/products/matmul_cpu.h"

#include "kernels/elementwise/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// Sums of a row that are kept apart, so that additions need not wait for each other.
constexpr std::int64_t kPartialSums = 4;
// Rows of w that a thread takes at a time.
constexpr std::int64_t kRows = 16;
// How far ahead of its use w is asked for: the processor's own prefetching stops at each page.
constexpr std::int64_t kPrefetch = 1024;
// Columns of w that one pass over its rows sums in registers.
constexpr std::int64_t kColumnVectors = 8;
constexpr std::int64_t kColumns = kColumnVectors * kVectorLanes;

constexpr Lanes rotated(int by) {
  Lanes lanes{};
  for (int i = 0; i < kVectorLanes; ++i) lanes.lane[i] = (i + by) % kVectorLanes;
  return lanes;
}

// The index is a constant only as a template argument's value: computed at run time it would cost
// more than the rest of a row.
template <int kWidth>
[[gnu::always_inline]] inline float sum_of(Vector v) {
  if constexpr (kWidth == 0) {
    return v[0];
  } else {
    constexpr Lanes kRotated = rotated(kWidth);
    return sum_of<kWidth / 2>(v + __builtin_shuffle(v, __builtin_bit_cast(LaneIndex, kRotated)));
  }
}

float dot(const float* x, const float* w, std::int64_t k) {
  constexpr std::int64_t kStep = kPartialSums * kVectorLanes;
  Vector sums[kPartialSums] = {};
  std::int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 4
    for (std::int64_t s = 0; s < kPartialSums; ++s) {
      __builtin_prefetch(w + i + s * kVectorLanes + kPrefetch);
      sums[s] += at(x + i + s * kVectorLanes) * at(w + i + s * kVectorLanes);
    }
  }
  for (; i + kVectorLanes <= k; i += kVectorLanes) sums[0] += at(x + i) * at(w + i);
  float sum = sum_of<kVectorLanes / 2>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < k; ++i) sum += x[i] * w[i];
  return sum;
}

void rows(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
          std::int64_t k, bool accumulate, int threads) {
  const std::int64_t blocks = (n + kRows - 1) / kRows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t end = block * kRows + kRows <= n ? block * kRows + kRows : n;
    for (std::int64_t row = block * kRows; row < end; ++row) {
      const float sum = dot(x, w + row * stride, k);
      y[row] = accumulate ? y[row] + sum : sum;
    }
  }
}

// Rows of w and of x whose products are summed at a time: as many as there are registers for.
constexpr int kTileOfW = kVectorLanes >= 16 ? 4 : 2;
constexpr int kTileOfX = 4;

// kW rows of w with kX rows of x. Asks for the rows of w that come next.
template <int kW, int kX>
void multiply_tile(const FewRowsProblem& p, const float* w, const float* x, float* y) {
  Vector sums[kW][kX] = {};
  std::int64_t i = 0;
  for (; i + kVectorLanes <= p.k; i += kVectorLanes) {
    Vector operand[kX];
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) operand[t] = at(x + t * p.x_stride + i);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) {
      __builtin_prefetch(w + (r + kW) * p.w_stride + i, 0, 2);
      const Vector factor = at(w + r * p.w_stride + i);
#pragma GCC unroll 4
      for (int t = 0; t < kX; ++t) sums[r][t] += operand[t] * factor;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kW; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) {
      float sum = sum_of<kVectorLanes / 2>(sums[r][t]);
      for (std::int64_t j = i; j < p.k; ++j) sum += x[t * p.x_stride + j] * w[r * p.w_stride + j];
      float& out = y[t * p.y_stride + r];
      out = p.accumulate ? out + sum : sum;
    }
  }
}

// kW rows of w with all rows of x.
template <int kW>
void multiply_rows(const FewRowsProblem& p, std::int64_t row) {
  const float* w = p.w + row * p.w_stride;
  std::int64_t t = 0;
  for (; t + kTileOfX <= p.m; t += kTileOfX)
    multiply_tile<kW, kTileOfX>(p, w, p.x + t * p.x_stride, p.y + t * p.y_stride + row);
  const float* x = p.x + t * p.x_stride;
  float* y = p.y + t * p.y_stride + row;
  if (p.m - t == 3) multiply_tile<kW, 3>(p, w, x, y);
  if (p.m - t == 2) multiply_tile<kW, 2>(p, w, x, y);
  if (p.m - t == 1) multiply_tile<kW, 1>(p, w, x, y);
}

void few_rows(const FewRowsProblem& p) {
  const std::int64_t tiles = p.n / kTileOfW;
#pragma omp parallel num_threads(p.threads)
  {
#pragma omp for schedule(static) nowait
    for (std::int64_t tile = 0; tile < tiles; ++tile) multiply_rows<kTileOfW>(p, tile * kTileOfW);
#pragma omp for schedule(static)
    for (std::int64_t row = tiles * kTileOfW; row < p.n; ++row) multiply_rows<1>(p, row);
  }
}

// kColumns columns, or fewer at the right edge.
void sum_columns(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t k,
                 std::int64_t count, bool accumulate) {
  if (count < kColumns) {
    for (std::int64_t c = 0; c < count; ++c) {
      float sum = 0.0f;
      for (std::int64_t i = 0; i < k; ++i) sum += x[i] * w[i * stride + c];
      y[c] = accumulate ? y[c] + sum : sum;
    }
    return;
  }
  Vector sums[kColumnVectors] = {};
  for (std::int64_t i = 0; i < k; ++i) {
    const float* row = w + i * stride;
    const Vector factor = Vector{} + x[i];
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < kColumnVectors; ++v)
      sums[v] += factor * at(row + v * kVectorLanes);
  }
  for (std::int64_t v = 0; v < kColumnVectors; ++v) {
    Vector& out = at(y + v * kVectorLanes);
    out = accumulate ? out + sums[v] : sums[v];
  }
}

void columns(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
             std::int64_t k, bool accumulate, int threads) {
  const std::int64_t blocks = (n + kColumns - 1) / kColumns;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t first = block * kColumns;
    const std::int64_t count = first + kColumns <= n ? kColumns : n - first;
    sum_columns(x, w + first, stride, y + first, k, count, accumulate);
  }
}

}  // namespace

const GemvKernels gemv_kernels = {rows, few_rows, columns};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
