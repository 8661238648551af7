#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

// `size` is the intermediate size: rows of gate_up have 2 · size elements.
struct SwigluKernels {
  // silu may be null.
  void (*forward)(const float* gate_up, float* activation, float* silu, std::int64_t rows,
                  std::int64_t size, int threads);
  // activation may be null, and silu, which is read.
  void (*backward)(const float* gate_up, const float* dactivation, float* dgate_up,
                   float* activation, const float* silu, std::int64_t rows, std::int64_t size,
                   int threads);
};
CHASKI_DECLARE_KERNELS(SwigluKernels, swiglu_kernels)

}  // namespace chaski
