#include "optim/adamw.h"

#include <fmt/core.h>
#include <stdexcept>

#include "kernels/optimizer/adamw.h"

namespace chaski {
namespace {

void require_between(const char* key, double value, double low, double high) {
  if (!(value >= low && value < high)) {
    throw std::invalid_argument(
        fmt::format("optimizer.{} = {} is not allowed: must be at least {} and below {}", key,
                    value, low, high));
  }
}

class AdamW : public Optimizer {
 public:
  AdamW(Device& device, ParameterSet& parameters, const AdamWOptions& options)
      : parameters_(parameters), options_(options) {
    require_between("beta1", options.beta1, 0.0, 1.0);
    require_between("beta2", options.beta2, 0.0, 1.0);
    require_between("epsilon", options.epsilon, 1e-30, 1.0);
    require_between("weight_decay", options.weight_decay, 0.0, 1e3);
    for (const Parameter& parameter : parameters) {
      const DType type = parameters.types().moments;
      first_.push_back(device.allocate(type, parameter.shape, MemoryCategory::optimizer));
      second_.push_back(device.allocate(type, parameter.shape, MemoryCategory::optimizer));
    }
  }

  void step(const OptimizerStep& step) override {
    AdamWHyperparameters hyperparameters{};
    hyperparameters.learning_rate = static_cast<float>(step.learning_rate);
    hyperparameters.beta1 = static_cast<float>(options_.beta1);
    hyperparameters.beta2 = static_cast<float>(options_.beta2);
    hyperparameters.epsilon = static_cast<float>(options_.epsilon);
    hyperparameters.step = step.step;
    hyperparameters.stochastic_rounding = options_.stochastic_rounding;
    hyperparameters.seed = options_.seed;
    hyperparameters.gradient_scale = static_cast<float>(step.gradient_scale);
    for (std::int64_t i = 0; i < parameters_.size(); ++i) {
      const Parameter& parameter = parameters_[i];
      if (!parameter.gradient) continue;
      const bool decays = parameter.kind != ParameterKind::norm;
      hyperparameters.weight_decay = decays ? static_cast<float>(options_.weight_decay) : 0.0f;
      hyperparameters.stream = static_cast<std::uint32_t>(i);
      const bool rounded = parameters_.types().has_master_weights();
      adamw_step(hyperparameters, parameter.value, parameter.gradient, first_[i].tensor(),
                 second_[i].tensor(), rounded ? parameter.compute : Tensor());
    }
    parameters_.values_changed();
  }

  std::vector<NamedTensor> state() override {
    std::vector<NamedTensor> result;
    for (std::int64_t i = 0; i < parameters_.size(); ++i) {
      result.push_back({"first_moment/" + parameters_[i].name, first_[i].tensor()});
      result.push_back({"second_moment/" + parameters_[i].name, second_[i].tensor()});
    }
    return result;
  }

  std::string name() const override { return "adamw"; }

 private:
  ParameterSet& parameters_;
  AdamWOptions options_;
  std::vector<Buffer> first_;
  std::vector<Buffer> second_;
};

}  // namespace

std::unique_ptr<Optimizer> make_adamw(Device& device, ParameterSet& parameters,
                                      const AdamWOptions& options) {
  return std::make_unique<AdamW>(device, parameters, options);
}

}  // namespace chaski
