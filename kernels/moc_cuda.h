#pragma once

#include "kernels/moc.h"

namespace chaski::cuda {

void moc_forward(const MocShape& shape, const Tensor& gate_up, const MocKept& kept,
                 const Tensor& activation);
void moc_backward(const MocShape& shape, const MocKept& kept, const Tensor& dactivation,
                  const Tensor& dgate_up, const Tensor& activation);
void moc_count(const MocShape& shape, const MocKept& kept, const Tensor& counts,
               const Tensor& positive);

}  // namespace chaski::cuda
