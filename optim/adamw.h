#pragma once

#include "optim/optimizer.h"

namespace chaski {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;         // decoupled; not applied to norms
  bool stochastic_rounding = false;  // of bf16 weights and moments
  std::uint64_t seed = 0;            // of that
};

// AdamW; the parameters' types say those of the moments. Throws std::invalid_argument on options
// out of range.
std::unique_ptr<Optimizer> make_adamw(Device& device, ParameterSet& parameters,
                                      const AdamWOptions& options);

}  // namespace chaski
