#include "optim/factory.h"

namespace chaski {
namespace {

// One overload of each a kind.

struct Make {
  Device& device;
  ParameterSet& parameters;

  std::unique_ptr<Optimizer> operator()(const AdamWOptions& options) const {
    return make_adamw(device, parameters, options);
  }
};

struct CountStateBytes {
  std::span<const ParameterCount> trainable;
  const TensorTypes& types;

  double operator()(const AdamWOptions&) const { return adamw_state_bytes(trainable, types); }
};

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(Device& device, ParameterSet& parameters,
                                          const OptimizerOptions& options) {
  return std::visit(Make{device, parameters}, options);
}

double optimizer_state_bytes(const OptimizerOptions& options,
                             std::span<const ParameterCount> trainable, const TensorTypes& types) {
  return std::visit(CountStateBytes{trainable, types}, options);
}

}  // namespace chaski
