#pragma once

#include "kernels/device.h"

namespace chaski {

// The best fp32 GEMM rate of the device in GFLOP/s, over square and model-like shapes: the ceiling
// that a training step's rate is compared with. Takes about `seconds` of measuring.
double measure_gemm_ceiling(Device& device, double seconds = 0.5);

}  // namespace chaski
