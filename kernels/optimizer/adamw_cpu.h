#pragma once

#include "kernels/device/cpu_kernels.h"
#include "kernels/optimizer/adamw_factors.h"

namespace chaski {

struct AdamWKernels {
  // compute gets the updated parameter as bf16; null: not wanted.
  void (*step)(const AdamWFactors& factors, float* parameter, const float* gradient,
               float* first_moment, float* second_moment, std::uint16_t* compute,
               std::int64_t count, int threads);
};
CHASKI_DECLARE_KERNELS(AdamWKernels, adamw_kernels)

}  // namespace chaski
