#pragma once

#include <cstdint>

namespace chaski {

// A step's factors, worked out from AdamWHyperparameters in double.
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

}  // namespace chaski
