#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "optim/optimizer.h"

namespace chaski {

// Ranges are those of [optimizer] (docs/config.md), which checks them.
struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;         // decoupled; not applied to norms
  bool stochastic_rounding = false;  // of bf16 weights and moments
  std::uint64_t seed = 0;            // of that
};

// AdamW; the parameters' types say those of the moments. State: "first_moment/<parameter>" and
// "second_moment/<parameter>", of its shape, and "left_out/<parameter>" (i64, a scalar) where it
// was left out of so many updates.
std::unique_ptr<Optimizer> make_adamw(Device& device, ParameterSet& parameters,
                                      const AdamWOptions& options);

// See optimizer_state_bytes().
double adamw_state_bytes(std::span<const ParameterCount> trainable, const TensorTypes& types);

}  // namespace chaski
