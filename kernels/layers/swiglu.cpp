#include "kernels/layers/swiglu.h"

#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/layers/swiglu_cpu.h"
#include "kernels/layers/swiglu_cuda.h"

namespace chaski {
namespace {

std::int64_t intermediate_size(const char* op, const Tensor& gate_up) {
  const std::int64_t columns = gate_up.shape().back();
  if (columns % 2 != 0)
    throw std::invalid_argument(fmt::format("{}: gate_up is {}, its last dimension must be even",
                                            op, gate_up.shape().to_string()));
  return columns / 2;
}

}  // namespace

void swiglu_forward(const Tensor& gate_up, const Tensor& activation, const Tensor& silu) {
  constexpr const char* kOp = "swiglu_forward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, gate_up);
  const std::int64_t rows = gate_up.shape().num_rows();
  const std::int64_t size = intermediate_size(kOp, gate_up);
  require_matrix(kOp, "activation", activation, rows, size);
  if (silu) require_matrix(kOp, "silu", silu, rows, size);
  if (device.is_counting()) return count_op(device, kOp, {gate_up, activation, silu});
  CHASKI_CUDA_OP(device, swiglu_forward(gate_up, activation, silu));
  CHASKI_CPU_KERNELS(swiglu_kernels)
      .forward(gate_up.f32(), activation.f32(), silu.f32(), rows, size,
               threads_for(device, rows * size));
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dactivation, const Tensor& dgate_up,
                     const Tensor& activation, const Tensor& silu) {
  constexpr const char* kOp = "swiglu_backward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, gate_up);
  const std::int64_t rows = gate_up.shape().num_rows();
  const std::int64_t size = intermediate_size(kOp, gate_up);
  require_matrix(kOp, "dactivation", dactivation, rows, size);
  require_matrix(kOp, "dgate_up", dgate_up, rows, 2 * size);
  if (activation) require_matrix(kOp, "activation", activation, rows, size);
  if (silu) require_matrix(kOp, "silu", silu, rows, size);
  if (device.is_counting())
    return count_op(device, kOp, {gate_up, dactivation, dgate_up, activation, silu});
  CHASKI_CUDA_OP(device, swiglu_backward(gate_up, dactivation, dgate_up, activation, silu));
  CHASKI_CPU_KERNELS(swiglu_kernels)
      .backward(gate_up.f32(), dactivation.f32(), dgate_up.f32(), activation.f32(), silu.f32(),
                rows, size, threads_for(device, rows * size));
}

}  // namespace chaski
