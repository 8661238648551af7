#pragma once

#include "kernels/device/tensor.h"

namespace chaski::cuda {

void swiglu_forward(const Tensor& gate_up, const Tensor& activation, const Tensor& silu);
void swiglu_backward(const Tensor& gate_up, const Tensor& dactivation, const Tensor& dgate_up,
                     const Tensor& activation, const Tensor& silu);

}  // namespace chaski::cuda
