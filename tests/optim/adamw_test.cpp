#include "optim/adamw.h"

#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <random>
#include <set>

#include "kernels/elementwise/elementwise.h"
#include "optim/factory.h"

namespace chaski {
namespace {

// AdamW written out in double, one element at a time.
struct Oracle {
  double parameter, first = 0.0, second = 0.0;

  void step(double gradient, int t, double lr, const AdamWOptions& options, bool decays) {
    if (decays) parameter *= 1.0 - lr * options.weight_decay;
    first = options.beta1 * first + (1 - options.beta1) * gradient;
    second = options.beta2 * second + (1 - options.beta2) * gradient * gradient;
    const double m = first / (1 - std::pow(options.beta1, t));
    const double v = second / (1 - std::pow(options.beta2, t));
    parameter -= lr * m / (std::sqrt(v) + options.epsilon);
  }
};

class AdamWTest : public ::testing::Test {
 protected:
  AdamWTest() : device_(Device::create_cpu(2)), parameters_(*device_) {
    parameters_.add("matrix", ParameterKind::ffn, 0, {7, 33});
    parameters_.add("frozen", ParameterKind::ffn, 0, {5, 5});
    parameters_.add("norm", ParameterKind::norm, 0, {33});
    parameters_.allocate();
    parameters_.allocate_gradients([](const Parameter& p) { return p.name != "frozen"; });
    for (Parameter& parameter : parameters_) fill_normal(parameter.value, 0.0f, 1.0f, 1, 2);
  }

  // Any gradients, other ones for each seed.
  void fill_gradients(std::uint64_t seed) {
    for (Parameter& parameter : parameters_) {
      if (parameter.gradient)
        fill_normal(parameter.gradient, 0.0f, 1.0f, seed, random_stream_of(parameter.name));
    }
  }

  using Values = std::vector<float>;
  static Values values_of(const Tensor& tensor) {
    return {tensor.f32(), tensor.f32() + tensor.num_elements()};
  }
  // Weights and state, by name.
  std::map<std::string, Values> everything(Optimizer& optimizer) {
    std::map<std::string, Values> all;
    for (const Parameter& parameter : parameters_) all[parameter.name] = values_of(parameter.value);
    for (const NamedTensor& named : optimizer.state()) {
      if (named.tensor.dtype() == DType::f32) all[named.name] = values_of(named.tensor);
    }
    return all;
  }

  std::unique_ptr<Device> device_;
  ParameterSet parameters_;
};

// A checkpoint's state in memory: copies of what state() gave.
class SavedState : public StateSource {
 public:
  explicit SavedState(Optimizer& optimizer) {
    for (const NamedTensor& named : optimizer.state()) {
      const auto* bytes = static_cast<const char*>(named.tensor.raw());
      tensors_[named.name] = {{named.tensor.dtype(), named.tensor.shape()},
                              {bytes, bytes + named.tensor.num_bytes()}};
    }
  }

  std::optional<Stored> find(const std::string& name) const override {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? std::nullopt : std::optional(found->second.stored);
  }
  void read(const std::string& name, const Tensor& tensor) const override {
    const std::optional<Stored> stored = find(name);
    if (!stored || stored->dtype != tensor.dtype() || !(stored->shape == tensor.shape()))
      throw std::invalid_argument("no fitting " + name);
    copy_from_host(tensors_.at(name).bytes.data(), tensor);
  }
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& [name, entry] : tensors_) names.insert(name);
    return names;
  }

 private:
  struct Entry {
    Stored stored{};
    std::vector<char> bytes;
  };
  std::map<std::string, Entry> tensors_;
};

TEST_F(AdamWTest, SaysThatValuesChanged) {
  const auto optimizer = make_adamw(*device_, parameters_, {});
  const std::int64_t before = parameters_.version();
  optimizer->step({.updates = 1, .learning_rate = 0.1});
  EXPECT_NE(parameters_.version(), before);
}

TEST_F(AdamWTest, FollowsTheDefinitionAndSparesNormsAndFrozenOnes) {
  AdamWOptions options;
  options.weight_decay = 0.3;
  const auto optimizer = make_adamw(*device_, parameters_, options);
  std::vector<std::vector<Oracle>> oracles;
  for (const Parameter& parameter : parameters_) {
    auto& column = oracles.emplace_back();
    for (std::int64_t i = 0; i < parameter.value.num_elements(); ++i) {
      column.push_back({parameter.value.f32()[i]});
    }
  }
  std::mt19937 generator(4);
  std::normal_distribution<float> normal;
  const double scale = 0.5;
  for (int t = 1; t <= 20; ++t) {
    const double lr = 0.01 * t;
    for (std::int64_t p = 0; p < parameters_.size(); ++p) {
      Parameter& parameter = parameters_[p];
      if (!parameter.gradient) continue;
      for (std::int64_t i = 0; i < parameter.value.num_elements(); ++i) {
        const float gradient = normal(generator);
        parameter.gradient.f32()[i] = gradient;
        oracles[p][i].step(scale * gradient, t, lr, options, parameter.kind != ParameterKind::norm);
      }
    }
    optimizer->step({.updates = t, .learning_rate = lr, .gradient_scale = scale});
  }
  for (std::int64_t p = 0; p < parameters_.size(); ++p) {
    for (std::size_t i = 0; i < oracles[p].size(); ++i) {
      ASSERT_NEAR(parameters_[p].value.f32()[i], oracles[p][i].parameter, 2e-5)
          << parameters_[p].name;
    }
  }
}

TEST_F(AdamWTest, StateHoldsTwoMomentsOfEachTrainableParameter) {
  const std::int64_t before = device_->memory().current(MemoryCategory::optimizer);
  const auto optimizer = make_optimizer(*device_, parameters_, AdamWOptions{});
  EXPECT_EQ(optimizer->name(), "adamw");
  std::vector<std::string> names;
  std::int64_t bytes = 0;
  for (const NamedTensor& named : optimizer->state()) {
    names.push_back(named.name);
    bytes += charged_bytes(named.tensor.num_bytes());
    EXPECT_FALSE(named.of_model);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"first_moment/matrix", "second_moment/matrix",
                                             "first_moment/norm", "second_moment/norm"}));
  EXPECT_EQ(device_->memory().current(MemoryCategory::optimizer) - before, bytes);
}

TEST_F(AdamWTest, BytesOfStateAreKnownBefore) {
  const auto optimizer = make_optimizer(*device_, parameters_, AdamWOptions{});
  std::vector<ParameterCount> trainable;
  for (const Parameter& parameter : parameters_) {
    if (parameter.gradient) trainable.push_back({parameter.kind, parameter.shape, 1.0});
  }
  double bytes = 0.0;
  for (const NamedTensor& named : optimizer->state())
    bytes += static_cast<double>(named.tensor.num_bytes());
  EXPECT_EQ(optimizer_state_bytes(AdamWOptions{}, trainable, parameters_.types()), bytes);

  // A share of more than 64 bits can count, in numbers of half the size.
  const ParameterCount vast{ParameterKind::ffn, {1'000'000'000, 1'000'000'000}, 2.5e9};
  EXPECT_DOUBLE_EQ(
      optimizer_state_bytes(AdamWOptions{}, std::vector{vast}, types_of(Precision::bf16_pure)),
      1e28);
}

// With a scale of 0 nothing happens to a parameter, and its own count of updates stands still:
// after others have made updates without it, it goes on as if these had not been.
TEST_F(AdamWTest, LeavesParametersOutWithoutDecayOrCount) {
  AdamWOptions options;
  options.weight_decay = 0.3;
  const auto optimizer = make_adamw(*device_, parameters_, options);
  std::map<std::string, Values> before = everything(*optimizer);
  const double without_matrix[] = {0.0, 1.0, 1.0};
  for (const std::int64_t updates : {1, 2}) {
    fill_gradients(static_cast<std::uint64_t>(updates));
    optimizer->step({.updates = updates, .learning_rate = 0.1, .parameter_scales = without_matrix});
  }
  std::map<std::string, Values> after = everything(*optimizer);
  for (const char* same : {"matrix", "first_moment/matrix", "second_moment/matrix", "frozen"})
    EXPECT_EQ(after[same], before[same]) << same;
  for (const char* other : {"norm", "first_moment/norm", "second_moment/norm"})
    EXPECT_NE(after[other], before[other]) << other;

  fill_gradients(3);
  optimizer->step({.updates = 3, .learning_rate = 0.1});
  const Values matrix = everything(*optimizer)["matrix"];
  for (std::size_t i = 0; i < matrix.size(); ++i) {
    Oracle oracle{before["matrix"][i]};
    oracle.step(parameters_[0].gradient.f32()[i], 1, 0.1, options, true);
    ASSERT_NEAR(matrix[i], oracle.parameter, 1e-6);
  }
  const double too_few[] = {1.0};
  EXPECT_THROW(optimizer->step({.updates = 4, .parameter_scales = too_few}), std::invalid_argument);
}

TEST_F(AdamWTest, ScalesMultiplyGradients) {
  const auto norm_with = [&](const OptimizerStep& step) {
    for (Parameter& parameter : parameters_) fill(parameter.value, 1.0f);
    fill_gradients(1);
    AdamWOptions options;
    options.epsilon = 0.5;  // else the size of a gradient hardly counts
    const auto optimizer = make_adamw(*device_, parameters_, options);
    optimizer->step(step);
    return everything(*optimizer)["norm"];
  };
  const double halves[] = {1.0, 1.0, 0.5};
  EXPECT_EQ(norm_with({.learning_rate = 0.1, .gradient_scale = 0.25, .parameter_scales = halves}),
            norm_with({.learning_rate = 0.1, .gradient_scale = 0.125}));
  EXPECT_NE(norm_with({.learning_rate = 0.1, .gradient_scale = 0.25}),
            norm_with({.learning_rate = 0.1, .gradient_scale = 0.125}));
}

// Another optimizer that has loaded the state goes on with the same bits, counts included.
TEST_F(AdamWTest, GoesOnFromItsStateWithTheSameBits) {
  const auto optimizer = make_adamw(*device_, parameters_, {});
  const double without_norm[] = {1.0, 1.0, 0.0};
  fill_gradients(1);
  optimizer->step({.updates = 1, .learning_rate = 0.1, .parameter_scales = without_norm});
  const SavedState saved(*optimizer);
  EXPECT_EQ(saved.names().count("left_out/norm"), 1U);
  EXPECT_EQ(saved.names().count("left_out/matrix"), 0U) << "nothing is to be said of it";
  std::vector<Values> weights;
  for (const Parameter& parameter : parameters_) weights.push_back(values_of(parameter.value));

  fill_gradients(2);
  optimizer->step({.updates = 2, .learning_rate = 0.1});
  const std::map<std::string, Values> expected = everything(*optimizer);

  for (std::int64_t i = 0; i < parameters_.size(); ++i)
    copy_from_host(weights[i].data(), parameters_[i].value);
  const auto resumed = make_adamw(*device_, parameters_, {});
  resumed->load(saved);
  resumed->step({.updates = 2, .learning_rate = 0.1});
  EXPECT_EQ(everything(*resumed), expected);
}

TEST_F(AdamWTest, NeedsTheMomentsOfWhatIsTrainedNow) {
  const auto optimizer = make_adamw(*device_, parameters_, {});
  const SavedState saved(*optimizer);
  parameters_.allocate_gradients([](const Parameter& p) { return p.name == "norm"; });
  EXPECT_NO_THROW(make_adamw(*device_, parameters_, {})->load(saved)) << "others are not asked for";
  parameters_.allocate_gradients([](const Parameter&) { return true; });
  try {
    make_adamw(*device_, parameters_, {})->load(saved);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "no fitting first_moment/frozen");
  }
}

}  // namespace
}  // namespace chaski
