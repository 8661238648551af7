#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

// y [m, n] = x [m, k] · wᵀ, w [n, k], each with contiguous elements in rows that may lie apart.
struct FewRowsProblem {
  const float* x;
  std::int64_t x_stride;
  const float* w;
  std::int64_t w_stride;
  float* y;
  std::int64_t y_stride;
  std::int64_t m, n, k;
  bool accumulate;
  int threads;
};

// Products of one row, or of a few: bound by reading the matrix once. y is stored, or added to with
// `accumulate`. Each element of y is summed by one thread in an order that does not depend on the
// number of threads.
struct GemvKernels {
  // y[n] = sum_k x[k] · w[n · stride + k]
  void (*rows)(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
               std::int64_t k, bool accumulate, int threads);
  // Of several rows, none of which has a part in another's sums.
  void (*few_rows)(const FewRowsProblem& problem);
  // y[n] = sum_k x[k] · w[k · stride + n]
  void (*columns)(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
                  std::int64_t k, bool accumulate, int threads);
};
CHASKI_DECLARE_KERNELS(GemvKernels, gemv_kernels)

}  // namespace chaski
