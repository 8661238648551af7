#include "kernels/optimizer/adamw.h"

#include <cmath>
#include <fmt/format.h>
#include <stdexcept>
#include <utility>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/optimizer/adamw_cpu.h"
#include "kernels/optimizer/adamw_cuda.h"

namespace chaski {
namespace {

constexpr const char* kOp = "adamw_step";

AdamWFactors factors_of(const AdamWHyperparameters& h) {
  if (h.step < 1)
    throw std::invalid_argument(fmt::format("{}: the step is {}, the first is 1", kOp, h.step));
  const auto step = static_cast<double>(h.step);
  const double correction1 = 1.0 - std::pow(static_cast<double>(h.beta1), step);
  const double correction2 = 1.0 - std::pow(static_cast<double>(h.beta2), step);
  return {
      .gradient_scale = h.gradient_scale,
      .decay = static_cast<float>(1.0 - static_cast<double>(h.learning_rate) * h.weight_decay),
      .beta1 = h.beta1,
      .one_minus_beta1 = static_cast<float>(1.0 - h.beta1),
      .beta2 = h.beta2,
      .one_minus_beta2 = static_cast<float>(1.0 - h.beta2),
      .step_size = static_cast<float>(h.learning_rate / correction1),
      .inverse_sqrt_correction = static_cast<float>(1.0 / std::sqrt(correction2)),
      .epsilon = h.epsilon,
  };
}

// Parameters of bf16 only where the device computes with them.
void require_precision(const Device& device, const Tensor& parameter) {
  if (parameter.dtype() == DType::f32 || device.backend() != Backend::cpu) return;
  throw std::invalid_argument(fmt::format("{}: parameter is {}, but the CPU computes in fp32", kOp,
                                          name_of(parameter.dtype())));
}

}  // namespace

void adamw_step(const AdamWHyperparameters& hyperparameters, const Tensor& parameter,
                const Tensor& gradient, const Tensor& first_moment, const Tensor& second_moment,
                const Tensor& compute) {
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, parameter);
  const std::int64_t count = parameter.num_elements();
  require_precision(device, parameter);
  const std::pair<const char*, const Tensor&> others[] = {
      {"gradient", gradient}, {"first_moment", first_moment}, {"second_moment", second_moment}};
  for (const auto& [name, tensor] : others) {
    require_elements(kOp, name, tensor, count);
    require_dtype(kOp, name, tensor, parameter.dtype());
  }
  if (compute) {
    require_elements(kOp, "compute", compute, count);
    require_dtype(kOp, "compute", compute, DType::bf16);
  }
  const AdamWFactors factors = factors_of(hyperparameters);
  if (device.is_counting())
    return count_op(device, kOp,
                    {parameter, parameter, gradient, first_moment, first_moment, second_moment,
                     second_moment, compute});
  CHASKI_CUDA_OP(device, adamw_step(hyperparameters, factors, parameter, gradient, first_moment,
                                    second_moment, compute));
  std::uint16_t* rounded = compute ? compute.as<std::uint16_t>() : nullptr;
  CHASKI_CPU_KERNELS(adamw_kernels)
      .step(factors, parameter.f32(), gradient.f32(), first_moment.f32(), second_moment.f32(),
            rounded, count, threads_for(device, count));
}

}  // namespace chaski
