#pragma once

#include "kernels/device/tensor.h"

namespace chaski {

// activation = silu(gate) · up. gate_up [T, 2·I]: the gate's I columns, then the up projection's;
// activation [T, I]. When `silu` [T, I] is not empty it receives silu(gate).
void swiglu_forward(const Tensor& gate_up, const Tensor& activation, const Tensor& silu = {});

// dgate_up [T, 2·I] from dactivation [T, I]; dgate_up may be gate_up. When `activation` is not
// empty it receives silu(gate) · up again (the operand of the down projection's weight gradient);
// it may be dactivation. When `silu` is not empty it is read instead of computed again.
void swiglu_backward(const Tensor& gate_up, const Tensor& dactivation, const Tensor& dgate_up,
                     const Tensor& activation, const Tensor& silu = {});

}  // namespace chaski
