#pragma once

#include "kernels/device/device.h"

namespace chaski {

// The best GEMM rate of the device in GFLOP/s for operands of `type` (f32, on a GPU also bf16),
// over square and model-like shapes: the ceiling that a training step's rate is compared with.
// Takes about `seconds` of measuring.
double measure_gemm_ceiling(Device& device, DType type = DType::f32, double seconds = 0.5);

}  // namespace chaski
