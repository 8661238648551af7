#include "kernels/matmul_cpu.h"

#include "kernels/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

typedef float Vector __attribute__((vector_size(4 * kVectorLanes), aligned(4), may_alias));

// Rows of w that are read at a time: enough streams to keep the memory busy.
constexpr std::int64_t kRows = 4;
constexpr std::int64_t kUnroll = 2;
// Columns of w that one pass over its rows sums in registers.
constexpr std::int64_t kColumnVectors = 8;
constexpr std::int64_t kColumns = kColumnVectors * kVectorLanes;

const Vector& load(const float* x) {
  return *reinterpret_cast<const Vector*>(x);
}

float sum_of(const Vector& v) {
  float sum = 0.0f;
  for (int i = 0; i < kVectorLanes; ++i) sum += v[i];
  return sum;
}

template <std::int64_t R>
[[gnu::always_inline]] inline void dot_rows(const float* x, const float* w, std::int64_t stride,
                                            std::int64_t k, float* sums) {
  constexpr std::int64_t kStep = kUnroll * kVectorLanes;
  Vector partial[R][kUnroll] = {};
  std::int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 8
    for (std::int64_t u = 0; u < kUnroll; ++u) {
      const Vector factor = load(x + i + u * kVectorLanes);
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < R; ++r)
        partial[r][u] += factor * load(w + r * stride + i + u * kVectorLanes);
    }
  }
  for (std::int64_t r = 0; r < R; ++r) {
    float sum = sum_of(partial[r][0] + partial[r][1]);
    for (std::int64_t tail = i; tail < k; ++tail) sum += x[tail] * w[r * stride + tail];
    sums[r] = sum;
  }
}

void rows(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
          std::int64_t k, bool accumulate, int threads) {
  const std::int64_t blocks = (n + kRows - 1) / kRows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t first = block * kRows;
    const std::int64_t count = first + kRows <= n ? kRows : n - first;
    float sums[kRows];
    if (count == kRows) {
      dot_rows<kRows>(x, w + first * stride, stride, k, sums);
    } else {
      for (std::int64_t r = 0; r < count; ++r)
        dot_rows<1>(x, w + (first + r) * stride, stride, k, sums + r);
    }
    for (std::int64_t r = 0; r < count; ++r)
      y[first + r] = accumulate ? y[first + r] + sums[r] : sums[r];
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
      sums[v] += factor * load(row + v * kVectorLanes);
  }
  for (std::int64_t v = 0; v < kColumnVectors; ++v) {
    Vector& out = *reinterpret_cast<Vector*>(y + v * kVectorLanes);
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

const GemvKernels gemv_kernels = {rows, columns};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
