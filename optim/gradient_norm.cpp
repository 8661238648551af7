#include "optim/gradient_norm.h"

#include "kernels/elementwise/elementwise.h"

namespace chaski {

double gradient_sum_of_squares(const ParameterSet& parameters, int part, int num_parts) {
  std::int64_t elements = 0;
  for (const Parameter& parameter : parameters) elements += parameter.gradient.num_elements();
  double total = 0.0;
  std::int64_t before = 0;
  Workspace::Frame frame(parameters.device(), "gradient norm");
  for (const Parameter& parameter : parameters) {
    if (!parameter.gradient) continue;
    // A parameter belongs to the part in which its middle lies.
    const std::int64_t count = parameter.gradient.num_elements();
    const std::int64_t middle = before + count / 2;
    before += count;
    if (middle * num_parts / elements == part) total += sum_of_squares(parameter.gradient);
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
