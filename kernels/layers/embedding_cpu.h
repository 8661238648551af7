#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

struct EmbeddingKernels {
  void (*forward)(const float* table, const std::int32_t* tokens, float* out,
                  std::int64_t num_tokens, std::int64_t hidden, int threads);
  void (*backward)(const float* dout, const std::int32_t* tokens, float* dtable,
                   std::int64_t num_tokens, std::int64_t hidden, int threads);
};
CHASKI_DECLARE_KERNELS(EmbeddingKernels, embedding_kernels)

}  // namespace chaski
