#include "kernels/adamw.h"

#include <cmath>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/adamw_cpu.h"
#include "kernels/dispatch.h"
#include "kernels/profile.h"

namespace chaski {

void adamw_step(const AdamWHyperparameters& hyperparameters, const Tensor& parameter,
                const Tensor& gradient, const Tensor& first_moment, const Tensor& second_moment) {
  constexpr const char* kOp = "adamw_step";
  const ProfileScope scope(kOp);
  const AdamWHyperparameters& h = hyperparameters;
  const Device& device = device_of(kOp, parameter);
  const std::int64_t count = parameter.num_elements();
  require_elements(kOp, "gradient", gradient, count);
  require_elements(kOp, "first_moment", first_moment, count);
  require_elements(kOp, "second_moment", second_moment, count);
  if (h.step < 1)
    throw std::invalid_argument(fmt::format("{}: the step is {}, the first is 1", kOp, h.step));

  const auto step = static_cast<double>(h.step);
  const double correction1 = 1.0 - std::pow(static_cast<double>(h.beta1), step);
  const double correction2 = 1.0 - std::pow(static_cast<double>(h.beta2), step);
  const AdamWFactors factors = {
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
  CHASKI_CPU_KERNELS(adamw_kernels)
      .step(factors, parameter.f32(), gradient.f32(), first_moment.f32(), second_moment.f32(),
            count, threads_for(device, count));
}

}  // namespace chaski
