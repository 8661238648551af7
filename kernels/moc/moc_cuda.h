#pragma once

#include "kernels/moc/moc.h"

namespace chaski::cuda {

void moc_forward(const MocShape& shape, const Tensor& gate_up, const MocKept& kept,
                 const Tensor& activation);
void moc_backward(const MocShape& shape, const MocKept& kept, const Tensor& dactivation,
                  const Tensor& dgate_up, const Tensor& activation);
// Selects from gates [T, I] alone. channels [T, keep] as MocIndex::uint16; places [T, I], 16 bits
// each, of which every one is written: the channel's place in that list, kMocNoPlace of one that is
// not kept.
inline constexpr std::uint16_t kMocNoPlace = 0xffff;
void moc_select(const MocShape& shape, const Tensor& gates, const Tensor& kept_gates,
                const Tensor& channels, const Tensor& places);
void moc_count(const MocShape& shape, const MocKept& kept, const Tensor& counts,
               const Tensor& positive);

}  // namespace chaski::cuda
