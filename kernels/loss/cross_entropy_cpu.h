#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

struct CrossEntropyKernels {
  // losses[r] = log Σ exp(logits[r]) - logits[r][targets[r]]; 0 where the target is negative.
  void (*forward)(const float* logits, const std::int32_t* targets, float* losses,
                  std::int64_t rows, std::int64_t vocab_size, int threads);
  // The same, and logits are overwritten by scale · dloss/dlogits (zeros where ignored).
  void (*forward_backward)(float* logits, const std::int32_t* targets, float* losses, float scale,
                           std::int64_t rows, std::int64_t vocab_size, int threads);
  // out[i] = exp((logits[i] - maximum) · inverse_temperature)
  void (*weights)(const float* logits, float inverse_temperature, float* out, std::int64_t count);
};
CHASKI_DECLARE_KERNELS(CrossEntropyKernels, cross_entropy_kernels)

}  // namespace chaski
