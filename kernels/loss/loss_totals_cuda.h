#pragma once

#include "kernels/device/tensor.h"

namespace chaski::cuda {

void add_loss_totals(const Tensor& losses, const Tensor& targets, const Tensor& totals);

}  // namespace chaski::cuda
