#pragma once

#include "kernels/attention/attention.h"
#include "kernels/device/tensor.h"

namespace chaski {

// Fills table [max_positions, head_dim] with cos (first half of a row) and sin (second half) of
// position · theta^(-2i/head_dim), i = 0 … head_dim/2 - 1. f32, computed in double on the host.
void rotary_table(double theta, const Tensor& table);

// Rotates the query and key heads of qkv [T, qkv_size] in place, half-split as in Hugging Face:
// (x_i, x_{i+d/2}) -> (x_i cos - x_{i+d/2} sin, x_{i+d/2} cos + x_i sin). positions [T] i32, or
// empty: token t is at position first_position + t mod shape.sequence_length. Throws
// std::invalid_argument where a position is outside the table; on a GPU, where nobody waits to look
// at `positions`, such a token becomes NaN.
void rotary_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                    std::int64_t first_position, const Tensor& table);
// The inverse rotation, in place, of the gradient.
void rotary_backward(const AttentionShape& shape, const Tensor& dqkv, const Tensor& positions,
                     const Tensor& table);

}  // namespace chaski
