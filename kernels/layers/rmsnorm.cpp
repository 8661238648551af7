#include "kernels/layers/rmsnorm.h"

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/layers/rmsnorm_cpu.h"
#include "kernels/layers/rmsnorm_cuda.h"

namespace chaski {
namespace {

void forward(const char* op, const Tensor& residual, const Tensor& delta, const Tensor& weight,
             float epsilon, const Tensor& residual_out, const Tensor& y,
             const Tensor& inverse_rms) {
  const ProfileScope scope(op);
  Device& device = device_of(op, residual);
  const std::int64_t rows = residual.shape().num_rows();
  const std::int64_t hidden = residual.shape().back();
  if (delta) {
    require_matrix(op, "delta", delta, rows, hidden);
    require_matrix(op, "residual_out", residual_out, rows, hidden);
  }
  require_elements(op, "weight", weight, hidden);
  require_matrix(op, "y", y, rows, hidden);
  if (inverse_rms) require_elements(op, "inverse_rms", inverse_rms, rows);
  if (device.is_counting())
    return count_op(device, op,
                    {residual, delta, weight, delta ? residual_out : Tensor(), y, inverse_rms});
  CHASKI_CUDA_OP(
      device, rmsnorm_forward(op, residual, delta, weight, epsilon, residual_out, y, inverse_rms));
  CHASKI_CPU_KERNELS(rmsnorm_kernels)
      .forward(residual.f32(), delta.f32(), weight.f32(), epsilon, residual_out.f32(), y.f32(),
               inverse_rms.f32(), rows, hidden, threads_for(device, rows * hidden));
}

// Partial sums of dweight, of one row each.
std::int64_t num_partial_sums(const Device& device, std::int64_t rows) {
  if (device.backend() == Backend::cuda) return cuda::rmsnorm_partial_sums(rows);
  return (rows + kRmsnormBlockRows - 1) / kRmsnormBlockRows;
}

}  // namespace

void rmsnorm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y,
                     const Tensor& inverse_rms) {
  forward("rmsnorm_forward", x, Tensor(), weight, epsilon, Tensor(), y, inverse_rms);
}

void add_rmsnorm_forward(const Tensor& residual, const Tensor& delta, const Tensor& weight,
                         float epsilon, const Tensor& residual_out, const Tensor& y,
                         const Tensor& inverse_rms) {
  constexpr const char* kOp = "add_rmsnorm_forward";
  device_of(kOp, delta);
  forward(kOp, residual, delta, weight, epsilon, residual_out, y, inverse_rms);
}

void rmsnorm_recompute(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& y) {
  constexpr const char* kOp = "rmsnorm_recompute";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  const std::int64_t rows = x.shape().num_rows();
  const std::int64_t hidden = x.shape().back();
  require_elements(kOp, "weight", weight, hidden);
  require_elements(kOp, "inverse_rms", inverse_rms, rows);
  require_matrix(kOp, "y", y, rows, hidden);
  if (device.is_counting()) return count_op(device, kOp, {x, weight, inverse_rms, y});
  CHASKI_CUDA_OP(device, rmsnorm_recompute(x, weight, inverse_rms, y));
  CHASKI_CPU_KERNELS(rmsnorm_kernels)
      .recompute(x.f32(), weight.f32(), inverse_rms.f32(), y.f32(), rows, hidden,
                 threads_for(device, rows * hidden));
}

void rmsnorm_backward(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                      const Tensor& dy, const Tensor& dx, const Tensor& dweight) {
  constexpr const char* kOp = "rmsnorm_backward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  const std::int64_t rows = x.shape().num_rows();
  const std::int64_t hidden = x.shape().back();
  require_elements(kOp, "weight", weight, hidden);
  require_elements(kOp, "inverse_rms", inverse_rms, rows);
  require_matrix(kOp, "dy", dy, rows, hidden);
  require_matrix(kOp, "dx", dx, rows, hidden);
  if (dweight) require_elements(kOp, "dweight", dweight, hidden);
  Workspace::Frame frame(device);
  const std::int64_t num_sums = num_partial_sums(device, rows);
  const Tensor sums = dweight ? frame.f32({num_sums, hidden}) : Tensor();
  if (device.is_counting())
    return count_op(device, kOp, {x, weight, inverse_rms, dy, dx, dx, dweight, dweight});
  CHASKI_CUDA_OP(device, rmsnorm_backward(x, weight, inverse_rms, dy, dx, dweight, sums));
  const RmsnormKernels& cpu = CHASKI_CPU_KERNELS(rmsnorm_kernels);
  cpu.backward(x.f32(), weight.f32(), inverse_rms.f32(), dy.f32(), dx.f32(), sums.f32(), rows,
               hidden, threads_for(device, rows * hidden));
  if (dweight) cpu.add_blocks(sums.f32(), num_sums, hidden, dweight.f32());
}

}  // namespace chaski
