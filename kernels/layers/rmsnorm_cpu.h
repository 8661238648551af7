#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

struct RmsnormKernels {
  // Rows of `hidden` elements. delta may be null (then residual_out is not written), inverse_rms
  // too.
  void (*forward)(const float* residual, const float* delta, const float* weight, float epsilon,
                  float* residual_out, float* y, float* inverse_rms, std::int64_t rows,
                  std::int64_t hidden, int threads);
  void (*recompute)(const float* x, const float* weight, const float* inverse_rms, float* y,
                    std::int64_t rows, std::int64_t hidden, int threads);
  // dweight_blocks [num_blocks, hidden] gets one partial sum per block of kRmsnormBlockRows rows,
  // null: not wanted.
  void (*backward)(const float* x, const float* weight, const float* inverse_rms, const float* dy,
                   float* dx, float* dweight_blocks, std::int64_t rows, std::int64_t hidden,
                   int threads);
  // dweight += the blocks, in order.
  void (*add_blocks)(const float* dweight_blocks, std::int64_t num_blocks, std::int64_t hidden,
                     float* dweight);
};
CHASKI_DECLARE_KERNELS(RmsnormKernels, rmsnorm_kernels)

// Rows whose contributions to dweight are summed first: fixed, so that the sum does not depend on
// the number of threads.
inline constexpr std::int64_t kRmsnormBlockRows = 64;

}  // namespace chaski
