#pragma once

#include <cstdint>

#include "kernels/device/tensor.h"

namespace chaski::cuda {

// losses[r] from row r of logits [rows, V] f32; dlogits [rows, V] of f32 (may be logits) or bf16
// receives scale · dloss/dlogits, empty: not wanted.
void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses, float scale,
                   const Tensor& dlogits);

}  // namespace chaski::cuda
