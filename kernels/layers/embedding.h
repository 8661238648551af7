#pragma once

#include "kernels/device/tensor.h"

namespace chaski {

// out [T, H] = rows `tokens` [T] i32 of table [V, H]. Throws std::invalid_argument on an id outside
// [0, V), naming it; on a GPU, where nobody waits to look at the ids, that row becomes NaN.
void embedding_forward(const Tensor& table, const Tensor& tokens, const Tensor& out);
// dtable[tokens[t]] += dout[t], in the order of t whatever the number of threads. Throws as above;
// on a GPU an id outside is left out. There dtable is f32 or bf16 (rounded once, at the end).
void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& dtable);

}  // namespace chaski
