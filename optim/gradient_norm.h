#pragma once

#include <cstdint>
#include <string>

#include "model/parameter.h"

namespace chaski {

// Σ of squares over all gradients of a set, in a fixed order: bit-identical for any thread count.
// Or share `part` of `num_parts` of that sum: of some of the parameters, with about as many
// elements in each share. The shares of all parts add up to the whole.
double gradient_sum_of_squares(const ParameterSet& parameters, int part = 0, int num_parts = 1);
// Factor that brings a global norm down to `clip` (1 when it is not above, or clip is 0).
double clip_factor(double norm, double clip);

// The first parameter whose gradient holds NaN or infinity, and how many of its elements do.
struct NonFinite {
  std::string name;
  std::int64_t count = 0;
};
NonFinite find_nonfinite_gradient(const ParameterSet& parameters);

}  // namespace chaski
