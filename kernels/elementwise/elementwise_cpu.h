#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

// Elements whose sum is taken first, in reductions: fixed, so that the result does not depend on
// the number of threads.
inline constexpr std::int64_t kReductionBlock = 65536;

struct ElementwiseKernels {
  void (*fill)(float* out, float value, std::int64_t count, int threads);
  void (*copy)(const char* from, char* to, std::int64_t bytes, int threads);
  void (*add)(const float* a, const float* b, float* out, std::int64_t count, int threads);
  void (*scale)(float* x, float factor, std::int64_t count, int threads);
  void (*to_bf16)(const float* from, std::uint16_t* to, std::int64_t count, int threads);
  void (*from_bf16)(const std::uint16_t* from, float* to, std::int64_t count, int threads);
  // partial_sums gets one number per block of kReductionBlock elements.
  void (*sum_of_squares)(const float* x, double* partial_sums, std::int64_t count, int threads);
  void (*sum)(const float* x, double* partial_sums, std::int64_t count, int threads);
  std::int64_t (*count_nonfinite)(const float* x, std::int64_t count, int threads);
};
CHASKI_DECLARE_KERNELS(ElementwiseKernels, elementwise_kernels)

// Compiled apart, with the same result on every instruction set.
struct NormalKernels {
  // See kernels/elementwise/elementwise.h.
  void (*fill)(float* out, std::int64_t count, float mean, float standard_deviation,
               std::uint64_t seed, std::uint64_t stream, int threads);
};
CHASKI_DECLARE_KERNELS(NormalKernels, normal_kernels)

}  // namespace chaski
