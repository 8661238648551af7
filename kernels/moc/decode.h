#pragma once

#include <cstdint>

#include "kernels/moc/moc.h"

namespace chaski {

// The FFN of MoC for the tokens of a decoding step, bound by reading weights: after the gates only
// the rows of the selected channels are read, of the up projection and of a transposed copy of the
// down projection, each once however many tokens selected it. On the CPU in fp32, on a GPU in fp32
// or bf16 with sums in fp32, and without waiting for it. Each sum is taken in an order that depends
// on the token's selection alone on the CPU, and on nothing that varies from run to run on a GPU.

// Tokens of a call, at most.
inline constexpr std::int64_t kMaxMocDecodeTokens = 16;

// Whether so many tokens take less time so than with products of all channels (moc_forward() or
// swiglu_forward() between two of linear_forward()): where the tokens select one and a half times
// as many channels as there are at most (at random that is four fifths of them together), and a
// token three quarters of them. Measured on AVX-512 (docs/moc.md). Not measured on a GPU, of which
// the same is said.
bool moc_decode_pays(const MocShape& shape, std::int64_t tokens);

struct MocDecodeWeights {
  Tensor up;               // [I, H]
  Tensor down_transposed;  // [I, H]
};

// What is selected of T tokens, in ascending order of channels.
struct MocSelection {
  Tensor gate;      // [T, keep]
  Tensor channels;  // [T, 2 · keep] u8: as MocIndex::uint16, whatever shape.index says
};

// From gates [T, I] = x · gateᵀ selects as moc_forward() does, bit for bit, and writes `selection`
// and out [T, H] = (SiLU(gate) · up of the selected channels) · downᵀ; x is [T, H]. out shares no
// memory with the operands.
void moc_decode(const MocShape& shape, const Tensor& x, const Tensor& gates,
                const MocDecodeWeights& weights, const MocSelection& selection, const Tensor& out);

// Channels that one or more of the tokens selected: rows of each weight that moc_decode() read.
// Waits for the device.
std::int64_t num_selected_channels(const MocShape& shape, const MocSelection& selection);

// to [M, N] = from [N, M] with rows and columns exchanged; both of f32 or both of bf16, sharing no
// memory.
void transpose(const Tensor& from, const Tensor& to);

}  // namespace chaski
