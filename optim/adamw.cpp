#include "optim/adamw.h"

#include <fmt/core.h>
#include <stdexcept>

#include "kernels/optimizer/adamw.h"

namespace chaski {
namespace {

constexpr int kNumMoments = 2;

// Of the noise that rounds a parameter: the same in every layout of the pipeline.
std::uint32_t rounding_stream_of(const Parameter& parameter) {
  const std::uint64_t stream = random_stream_of(parameter.name);
  return static_cast<std::uint32_t>(stream ^ (stream >> 32));
}

class AdamW : public Optimizer {
 public:
  AdamW(Device& device, ParameterSet& parameters, const AdamWOptions& options)
      : parameters_(parameters),
        options_(options),
        // Devices set the number of OpenMP's threads: of another number it would slow this one.
        host_(Device::create_cpu(device.num_threads())),
        left_out_(host_->allocate(DType::i64, {parameters.size()}, MemoryCategory::optimizer)) {
    const DType type = parameters.types().moments;
    for (const Parameter& parameter : parameters) {
      Moments& moments = moments_.emplace_back();
      if (!parameter.gradient) continue;
      moments.first = device.allocate(type, parameter.shape, MemoryCategory::optimizer);
      moments.second = device.allocate(type, parameter.shape, MemoryCategory::optimizer);
    }
  }

  void step(const OptimizerStep& step) override {
    const std::span<const double> scales = step.parameter_scales;
    if (!scales.empty() && scales.size() != moments_.size()) {
      throw std::invalid_argument(
          fmt::format("adamw: {} scales for {} parameters", scales.size(), moments_.size()));
    }
    AdamWHyperparameters hyperparameters = hyperparameters_of(step);
    for (std::int64_t i = 0; i < parameters_.size(); ++i) {
      const Parameter& parameter = parameters_[i];
      const double scale = scales.empty() ? 1.0 : scales[i];
      std::int64_t& left_out = left_out_.tensor().i64()[i];
      if (!parameter.gradient || scale == 0.0) {
        ++left_out;
        continue;
      }
      const bool decays = parameter.kind != ParameterKind::norm;
      hyperparameters.step = step.updates - left_out;
      hyperparameters.gradient_scale = static_cast<float>(step.gradient_scale * scale);
      hyperparameters.weight_decay = decays ? static_cast<float>(options_.weight_decay) : 0.0f;
      hyperparameters.stream = rounding_stream_of(parameter);
      const bool rounded = parameters_.types().has_master_weights();
      adamw_step(hyperparameters, parameter.value, parameter.gradient, moments_[i].first.tensor(),
                 moments_[i].second.tensor(), rounded ? parameter.compute : Tensor());
    }
    parameters_.values_changed();
  }

  std::vector<NamedTensor> state() override {
    std::vector<NamedTensor> result;
    for (std::int64_t i = 0; i < parameters_.size(); ++i) {
      if (!is_trained(i)) continue;
      result.push_back({first_name(i), moments_[i].first.tensor()});
      result.push_back({second_name(i), moments_[i].second.tensor()});
      if (*left_out_of(i).i64() > 0) result.push_back({left_out_name(i), left_out_of(i)});
    }
    return result;
  }

  void load(const StateSource& source) override {
    for (std::int64_t i = 0; i < parameters_.size(); ++i) {
      if (!is_trained(i)) continue;
      source.read(first_name(i), moments_[i].first.tensor());
      source.read(second_name(i), moments_[i].second.tensor());
      *left_out_of(i).i64() = 0;
      if (source.find(left_out_name(i))) source.read(left_out_name(i), left_out_of(i));
    }
  }

  std::string name() const override { return "adamw"; }

 private:
  struct Moments {
    Buffer first;  // empty where the parameter is frozen
    Buffer second;
  };

  AdamWHyperparameters hyperparameters_of(const OptimizerStep& step) const {
    AdamWHyperparameters hyperparameters{};
    hyperparameters.learning_rate = static_cast<float>(step.learning_rate);
    hyperparameters.beta1 = static_cast<float>(options_.beta1);
    hyperparameters.beta2 = static_cast<float>(options_.beta2);
    hyperparameters.epsilon = static_cast<float>(options_.epsilon);
    hyperparameters.stochastic_rounding = options_.stochastic_rounding;
    hyperparameters.seed = options_.seed;
    return hyperparameters;
  }

  bool is_trained(std::int64_t i) const { return !moments_[i].first.empty(); }
  Tensor left_out_of(std::int64_t i) const { return left_out_.tensor().rows(i, 1).view({}); }
  std::string first_name(std::int64_t i) const { return "first_moment/" + parameters_[i].name; }
  std::string second_name(std::int64_t i) const { return "second_moment/" + parameters_[i].name; }
  std::string left_out_name(std::int64_t i) const { return "left_out/" + parameters_[i].name; }

  ParameterSet& parameters_;
  AdamWOptions options_;
  std::unique_ptr<Device> host_;
  Buffer left_out_;  // of how many updates each parameter was
  std::vector<Moments> moments_;
};

}  // namespace

std::unique_ptr<Optimizer> make_adamw(Device& device, ParameterSet& parameters,
                                      const AdamWOptions& options) {
  return std::make_unique<AdamW>(device, parameters, options);
}

double adamw_state_bytes(std::span<const ParameterCount> trainable, const TensorTypes& types) {
  double elements = 0.0;
  for (const ParameterCount& parameters : trainable) elements += parameters.num_elements();
  return kNumMoments * static_cast<double>(size_of(types.moments)) * elements;
}

}  // namespace chaski
