#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace chaski::cuda {

// delta may be empty: then residual_out is not written.
void rmsnorm_forward(const char* op, const Tensor& residual, const Tensor& delta,
                     const Tensor& weight, float epsilon, const Tensor& residual_out,
                     const Tensor& y, const Tensor& inverse_rms);
void rmsnorm_recompute(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& y);
void rmsnorm_backward(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                      const Tensor& dy, const Tensor& dx, const Tensor& dweight);

// Partial sums of dweight, of `hidden` floats each, that rmsnorm_backward keeps in the workspace.
std::int64_t rmsnorm_partial_sums(std::int64_t rows);

}  // namespace chaski::cuda
