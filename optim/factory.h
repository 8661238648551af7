#pragma once

#include <memory>
#include <span>
#include <variant>

#include "optim/adamw.h"
#include "optim/optimizer.h"

namespace chaski {

// One alternative a kind of optimizer: what it is and with which options.
using OptimizerOptions = std::variant<AdamWOptions>;

// An optimizer of the parameters that have a gradient now; its state is allocated on the device.
std::unique_ptr<Optimizer> make_optimizer(Device& device, ParameterSet& parameters,
                                          const OptimizerOptions& options);

// Bytes of state that such an optimizer takes of its device for these parameters, without what
// aligns them; of host memory it takes a few bytes a parameter more.
double optimizer_state_bytes(const OptimizerOptions& options,
                             std::span<const ParameterCount> trainable, const TensorTypes& types);

}  // namespace chaski
