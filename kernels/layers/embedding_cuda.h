#pragma once

#include "kernels/device/tensor.h"

namespace chaski::cuda {

void embedding_forward(const Tensor& table, const Tensor& tokens, const Tensor& out);
void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& dtable);

}  // namespace chaski::cuda
