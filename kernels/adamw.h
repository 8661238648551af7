#pragma once

#include "kernels/tensor.h"

namespace chaski {

// Decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), as torch.optim.AdamW:
//   g = gradient_scale · gradient;  p *= 1 - lr · weight_decay
//   m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²
//   p -= lr · (m / (1-β1^step)) / (sqrt(v / (1-β2^step)) + epsilon)
struct AdamWHyperparameters {
  float learning_rate;
  float beta1;
  float beta2;
  float epsilon;
  float weight_decay;
  std::int64_t step;     // 1-based
  float gradient_scale;  // e.g. from clipping
};
// All tensors fp32 and of the same number of elements, updated in one pass over memory.
void adamw_step(const AdamWHyperparameters& hyperparameters, const Tensor& parameter,
                const Tensor& gradient, const Tensor& first_moment, const Tensor& second_moment);

}  // namespace chaski
