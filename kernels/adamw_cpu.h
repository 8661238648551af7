#pragma once

#include "kernels/cpu_kernels.h"

namespace chaski {

// The step's factors, worked out from AdamWHyperparameters in double.
struct AdamWFactors {
  float gradient_scale;
  float decay;  // 1 - lr · weight_decay
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float step_size;                // lr / (1 - β1^step)
  float inverse_sqrt_correction;  // 1 / sqrt(1 - β2^step)
  float epsilon;
};

struct AdamWKernels {
  void (*step)(const AdamWFactors& factors, float* parameter, const float* gradient,
               float* first_moment, float* second_moment, std::int64_t count, int threads);
};
CHASKI_DECLARE_KERNELS(AdamWKernels, adamw_kernels)

}  // namespace chaski
