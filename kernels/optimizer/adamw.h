#pragma once

#include "kernels/device/tensor.h"

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
  // Where the parameter and its moments are bf16, they are rounded to one of their two neighbours,
  // the nearer the likelier, instead of to the nearest: updates far below a parameter's resolution
  // count on average. The noise is a pure function of (seed, stream, step, element), from Philox
  // (kernels/elementwise/philox.h).
  bool stochastic_rounding = false;
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;  // another one for each parameter
};
// All tensors are of the same number of elements and updated in one pass over memory, in f32
// arithmetic. Parameter, gradient and moments are f32, or on a GPU all of them bf16; the CPU
// computes in f32 and throws std::invalid_argument for bf16. `compute` (bf16, may be empty)
// receives the updated parameter, rounded to nearest where that is f32.
void adamw_step(const AdamWHyperparameters& hyperparameters, const Tensor& parameter,
                const Tensor& gradient, const Tensor& first_moment, const Tensor& second_moment,
                const Tensor& compute = {});

}  // namespace chaski
