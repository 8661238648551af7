#include "optim/gradient_norm.h"

#include "kernels/elementwise.h"

namespace chaski {

double gradient_sum_of_squares(const ParameterSet& parameters) {
  double total = 0.0;
  for (const Parameter& parameter : parameters) {
    if (parameter.gradient) total += sum_of_squares(parameter.gradient);
  }
  return total;
}

double clip_factor(double norm, double clip) {
  // The constant is torch.nn.utils.clip_grad_norm_'s.
  return clip > 0.0 && norm > clip ? clip / (norm + 1e-6) : 1.0;
}

NonFinite find_nonfinite_gradient(const ParameterSet& parameters) {
  for (const Parameter& parameter : parameters) {
    if (!parameter.gradient) continue;
    if (const std::int64_t count = count_nonfinite(parameter.gradient)) {
      return {parameter.name, count};
    }
  }
  return {};
}

}  // namespace chaski
