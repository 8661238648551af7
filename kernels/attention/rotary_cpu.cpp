#include "kernels/attention/rotary_cpu.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

void rotate_head(float* x, const float* cosine, const float* sine, float direction,
                 std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const float low = x[i];
    const float high = x[i + half];
    const float s = direction * sine[i];
    x[i] = low * cosine[i] - high * s;
    x[i + half] = high * cosine[i] + low * s;
  }
}

void rotate(float* x, std::int64_t rows, std::int64_t stride, std::int64_t num_heads,
            std::int64_t head_dim, const std::int32_t* positions, std::int64_t first_position,
            std::int64_t sequence_length, const float* table, float direction, int threads) {
  const std::int64_t half = head_dim / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t position =
        positions != nullptr ? positions[row] : first_position + row % sequence_length;
    const float* cosine = table + position * head_dim;
    for (std::int64_t head = 0; head < num_heads; ++head)
      rotate_head(x + row * stride + head * head_dim, cosine, cosine + half, direction, half);
  }
}

}  // namespace

const RotaryKernels rotary_kernels = {rotate};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
