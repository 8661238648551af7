#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/device/tensor.h"

namespace chaski::cuda {

// As RotaryKernels::rotate of kernels/attention/rotary_cpu.h. A position outside the table gives
// NaN.
void rotary(const char* op, const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
            std::int64_t first_position, const Tensor& table, float direction);

}  // namespace chaski::cuda
