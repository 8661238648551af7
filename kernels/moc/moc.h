#pragma once

#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// Mixture-of-Channels (arXiv 2511.09323): of the I channels of a SwiGLU only `keep` are used for a
// token, those whose gate is largest; the others contribute nothing, forward and backward. The
// selection is a constant for the backward pass.

enum class MocPattern {
  topk,          // the largest of all channels
  two_of_eight,  // the two largest of each eight neighbours, fewer in a shorter group at the end
};
const char* name_of(MocPattern pattern);  // "topk", "2:8"
// What "largest" compares.
enum class MocScore {
  gate,            // the signed gate before SiLU
  silu_magnitude,  // |SiLU(gate)|, for ablations
};
const char* name_of(MocScore score);  // "gate", "silu-magnitude"
// How the kept channels of a token are stored.
enum class MocIndex {
  uint16,  // 2 · keep bytes: the channels in ascending order
  bitmap,  // a bit for each channel
};
const char* name_of(MocIndex index);  // "uint16", "bitmap"

struct MocShape {
  std::int64_t intermediate_size = 0;  // I, at most kMaxChannels
  std::int64_t keep = 0;               // 1 … I; of two_of_eight what kept_of_eight() says
  MocPattern pattern = MocPattern::topk;
  MocScore score = MocScore::gate;
  MocIndex index = MocIndex::uint16;

  static constexpr std::int64_t kMaxChannels = 65535;
  // 2 · ⌊I/8⌋ + min(2, I mod 8).
  static std::int64_t kept_of_eight(std::int64_t intermediate_size);
  // Of a token, in the given or the smaller form.
  std::int64_t index_bytes() const;
  static MocIndex smaller_index(std::int64_t intermediate_size, std::int64_t keep);
};

// What is kept of T tokens for the backward pass, in ascending order of channels.
struct MocKept {
  Tensor gate;     // [T, keep]
  Tensor up;       // [T, keep]
  Tensor silu;     // [T, keep]; empty: recomputed, with the rounding that it would have had
  Tensor product;  // [T, keep], silu · up; empty: recomputed
  Tensor index;    // [T, index_bytes] u8
};

// Selects from gate_up [T, 2·I] (the gates' columns, then the up projection's), writes `kept` and
// activation [T, I]: SiLU(gate) · up in the kept channels, zero elsewhere. Of equal scores at the
// threshold the lower channels are kept. A NaN counts as larger than everything. activation shares
// no memory with gate_up.
void moc_forward(const MocShape& shape, const Tensor& gate_up, const MocKept& kept,
                 const Tensor& activation);

// dgate_up [T, 2·I] from dactivation [T, I], zero where nothing was kept; `activation` [T, I]
// receives what moc_forward wrote there (the operand of the down projection's weight gradient) and
// may be dactivation; empty: not wanted. dgate_up shares no memory with dactivation.
void moc_backward(const MocShape& shape, const MocKept& kept, const Tensor& dactivation,
                  const Tensor& dgate_up, const Tensor& activation);

// Adds to counts [I] i32, read without a sign, how many of the kept tokens selected each channel
// and to positive [2] i32, the lower and the upper half of a number of 64 bits, how many kept gates
// are positive.
void moc_count(const MocShape& shape, const MocKept& kept, const Tensor& counts,
               const Tensor& positive);

}  // namespace chaski
