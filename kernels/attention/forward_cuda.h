#pragma once

#include "kernels/attention/tiles_cuda.h"

namespace chaski::cuda {

// The tiled forward pass over operands anywhere. log_sum_exp may be null. There is at least one
// query.
template <typename T>
void run_attention_forward(Device& device, const AttentionOperands<T>& operands, T* out,
                           float* log_sum_exp);

}  // namespace chaski::cuda
