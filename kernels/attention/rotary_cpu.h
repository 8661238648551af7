#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

struct RotaryKernels {
  // Rotates the first num_heads · head_dim elements of each of `rows` rows, `stride` elements
  // apart, by the angle of the row's position: positions[row], or where that is null first_position
  // + row mod sequence_length. `direction` is 1, or -1 for the inverse.
  void (*rotate)(float* x, std::int64_t rows, std::int64_t stride, std::int64_t num_heads,
                 std::int64_t head_dim, const std::int32_t* positions, std::int64_t first_position,
                 std::int64_t sequence_length, const float* table, float direction, int threads);
};
CHASKI_DECLARE_KERNELS(RotaryKernels, rotary_kernels)

}  // namespace chaski
