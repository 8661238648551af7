#pragma once

#include "kernels/tensor.h"

namespace chaski {

// activation = silu(gate) · up. gate_up [T, 2·I]: the gate's I columns, then the up projection's;
// activation [T, I].
void swiglu_forward(const Tensor& gate_up, const Tensor& activation);

// dgate_up [T, 2·I] from dactivation [T, I]; dgate_up may be gate_up. When `activation` is not
// empty it receives silu(gate) · up again (the operand of the down projection's weight gradient);
// it may be dactivation.
void swiglu_backward(const Tensor& gate_up, const Tensor& dactivation, const Tensor& dgate_up,
                     const Tensor& activation);

}  // namespace chaski
