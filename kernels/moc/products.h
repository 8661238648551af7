#pragma once

#include "kernels/moc/moc.h"

namespace chaski {

// The FFN of MoC on the CPU, computing only what is kept: of the nine matrix products of a SwiGLU's
// training step only the gates' forward one is left to linear_forward(); the other eight cost
// keep / I of the dense ones' arithmetic, at a lower rate. fp32 on the CPU only.
// Each sum is taken in the order of the channels (of the tokens, for weights) by one thread:
// results do not depend on the number of threads, nor those of a token on the other tokens.

// Whether that takes less time than the dense products: with 32 tokens or more, of which at most
// half of the channels are kept, less where `hidden` is no multiple of the 32, 64 or 128 columns
// that are computed at a time with SSE, AVX2 and AVX-512 (measured on Zen 4: 0.41 of the dense time
// at keep / I = 0.19, 0.8 at 0.5, with the dense and the sparse products both in AVX-512, AVX2 or
// SSE). Never on a GPU.
bool moc_products_pay(const Device& device, const MocShape& shape, std::int64_t hidden,
                      std::int64_t tokens);

struct MocWeights {
  Tensor gate;  // [I, H]
  Tensor up;    // [I, H]
  Tensor down;  // [H, I]
};

// From gates [T, I] = x · gateᵀ selects as moc_forward() does, bit for bit, and writes `kept`
// and out [T, H] = (SiLU(gate) · up of the kept channels) · downᵀ. x [T, H] is what the gates were
// made of; weights.gate is not read and may be empty. out shares no memory with the operands; where
// it is empty only `kept` is written.
void moc_products_forward(const MocShape& shape, const Tensor& x, const Tensor& gates,
                          const MocWeights& weights, const MocKept& kept, const Tensor& out);

// From dout [T, H] adds to `gradients` (each of the shape of its weight, or empty: frozen) and
// writes dx [T, H]. x may be empty where neither gate nor up has a gradient; dx may be x or dout.
// kept.silu and kept.product are not read.
void moc_products_backward(const MocShape& shape, const Tensor& dout, const Tensor& x,
                           const MocWeights& weights, const MocKept& kept,
                           const MocWeights& gradients, const Tensor& dx);

}  // namespace chaski
