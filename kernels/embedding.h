#pragma once

#include "kernels/tensor.h"

namespace chaski {

// out [T, H] = rows `tokens` [T] i32 of table [V, H]. Throws std::invalid_argument on an id outside
// [0, V), naming it.
void embedding_forward(const Tensor& table, const Tensor& tokens, const Tensor& out);
// dtable[tokens[t]] += dout[t], in the order of t whatever the number of threads.
void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& dtable);

}  // namespace chaski
