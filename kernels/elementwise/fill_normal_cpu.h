#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

struct NormalKernels {
  // See kernels/elementwise/elementwise.h.
  void (*fill)(float* out, std::int64_t count, float mean, float standard_deviation,
               std::uint64_t seed, std::uint64_t stream, int threads);
};
CHASKI_DECLARE_KERNELS(NormalKernels, normal_kernels)

}  // namespace chaski
