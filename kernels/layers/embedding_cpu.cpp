#include "kernels/layers/embedding_cpu.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

void forward(const float* table, const std::int32_t* tokens, float* out, std::int64_t num_tokens,
             std::int64_t hidden, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const float* row = table + tokens[t] * hidden;
    __builtin_memcpy(out + t * hidden, row, static_cast<std::size_t>(hidden) * sizeof(float));
  }
}

// Each thread owns a range of columns and goes through all tokens in order: no two threads write to
// one element, and the order of additions is that of t.
void backward(const float* dout, const std::int32_t* tokens, float* dtable, std::int64_t num_tokens,
              std::int64_t hidden, int threads) {
  constexpr std::int64_t kLine = 16;  // columns of a cache line
  const std::int64_t num_lines = (hidden + kLine - 1) / kLine;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int part = 0; part < threads; ++part) {
    const std::int64_t begin = num_lines * part / threads * kLine;
    const std::int64_t last = num_lines * (part + 1) / threads * kLine;
    const std::int64_t end = last < hidden ? last : hidden;
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      float* to = dtable + tokens[t] * hidden;
      const float* from = dout + t * hidden;
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
    }
  }
}

}  // namespace

const EmbeddingKernels embedding_kernels = {forward, backward};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
