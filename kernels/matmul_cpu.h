#pragma once

#include "kernels/cpu_kernels.h"

namespace chaski {

// Products of one row: bound by reading the matrix once. y is stored, or added to with
// `accumulate`. Each element of y is summed by one thread in an order that does not depend on the
// number of threads.
struct GemvKernels {
  // y[n] = sum_k x[k] · w[n · stride + k]
  void (*rows)(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
               std::int64_t k, bool accumulate, int threads);
  // y[n] = sum_k x[k] · w[k · stride + n]
  void (*columns)(const float* x, const float* w, std::int64_t stride, float* y, std::int64_t n,
                  std::int64_t k, bool accumulate, int threads);
};
CHASKI_DECLARE_KERNELS(GemvKernels, gemv_kernels)

}  // namespace chaski
