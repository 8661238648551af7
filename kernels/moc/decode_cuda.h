#pragma once

#include "kernels/moc/decode.h"

namespace chaski::cuda {

void moc_decode(const MocShape& shape, const Tensor& x, const Tensor& gates,
                const MocDecodeWeights& weights, const MocSelection& selection, const Tensor& out);
void transpose(const Tensor& from, const Tensor& to);

}  // namespace chaski::cuda
