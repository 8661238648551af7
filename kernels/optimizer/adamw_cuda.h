#pragma once

#include <cstdint>

#include "kernels/device/tensor.h"
#include "kernels/optimizer/adamw.h"
#include "kernels/optimizer/adamw_factors.h"

namespace chaski::cuda {

void adamw_step(const AdamWHyperparameters& hyperparameters, const AdamWFactors& factors,
                const Tensor& parameter, const Tensor& gradient, const Tensor& first_moment,
                const Tensor& second_moment, const Tensor& compute);

}  // namespace chaski::cuda
