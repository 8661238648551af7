#include "optim/adamw.h"

#include <cmath>
#include <gtest/gtest.h>
#include <random>

#include "kernels/elementwise/elementwise.h"

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

  std::unique_ptr<Device> device_;
  ParameterSet parameters_;
};

TEST_F(AdamWTest, SaysThatValuesChanged) {
  const auto optimizer = make_adamw(*device_, parameters_, AdamWOptions{});
  const std::int64_t before = parameters_.version();
  optimizer->step({.step = 1, .learning_rate = 0.1, .gradient_scale = 1.0});
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
    optimizer->step({.step = t, .learning_rate = lr, .gradient_scale = scale});
  }
  for (std::int64_t p = 0; p < parameters_.size(); ++p) {
    for (std::size_t i = 0; i < oracles[p].size(); ++i) {
      ASSERT_NEAR(parameters_[p].value.f32()[i], oracles[p][i].parameter, 2e-5)
          << parameters_[p].name;
    }
  }
}

TEST_F(AdamWTest, StateHoldsTwoMomentsOfEveryParameter) {
  const auto optimizer = make_adamw(*device_, parameters_, {});
  std::int64_t elements = 0;
  for (const NamedTensor& named : optimizer->state()) elements += named.tensor.num_elements();
  EXPECT_EQ(elements, 2 * parameters_.num_elements());
  EXPECT_EQ(optimizer->state()[0].name, "first_moment/matrix");
  EXPECT_EQ(optimizer->state()[1].name, "second_moment/matrix");
}

TEST_F(AdamWTest, OptionsOutOfRangeAreRefusedByKey) {
  AdamWOptions options;
  options.beta2 = 1.0;
  try {
    make_adamw(*device_, parameters_, options);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("optimizer.beta2 = 1"), std::string::npos);
  }
}

}  // namespace
}  // namespace chaski
