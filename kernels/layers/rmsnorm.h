#pragma once

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// On GPUs x, y, weight, delta, dy and dx are f32 or bf16 alike, dweight is f32 or bf16, inverse_rms
// is f32 and sums are taken in f32. There residual_out is rounded before it is normalized.

// y = x · rstd · weight, rstd = 1/sqrt(mean(x²) + epsilon), over rows. x, y [T, H]; weight [H];
// inverse_rms [T] is stored for the backward pass (may be empty when it is not needed).
void rmsnorm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y,
                     const Tensor& inverse_rms);

// residual_out = residual + delta, then rmsnorm_forward of it, in one pass over memory.
// residual_out may be residual.
void add_rmsnorm_forward(const Tensor& residual, const Tensor& delta, const Tensor& weight,
                         float epsilon, const Tensor& residual_out, const Tensor& y,
                         const Tensor& inverse_rms);

// y again, from the stored inverse_rms: what a backward pass needs as an operand.
void rmsnorm_recompute(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& y);

// dx += gradient through the norm (dx already holds the residual branch's gradient);
// dweight [H] += … when not empty. The result does not depend on the number of threads.
void rmsnorm_backward(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                      const Tensor& dy, const Tensor& dx, const Tensor& dweight);

}  // namespace chaski
