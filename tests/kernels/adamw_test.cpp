#include "kernels/adamw.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;

// As torch.optim.AdamW's single-tensor code does it, in double.
struct ReferenceAdamW {
  Reference parameter;
  Reference first_moment;
  Reference second_moment;

  void step(const AdamWHyperparameters& h, const Values& gradient) {
    const double correction1 = 1.0 - std::pow(static_cast<double>(h.beta1), h.step);
    const double correction2 = 1.0 - std::pow(static_cast<double>(h.beta2), h.step);
    for (std::size_t i = 0; i < parameter.size(); ++i) {
      const double g = static_cast<double>(gradient[i]) * h.gradient_scale;
      parameter[i] *= 1.0 - static_cast<double>(h.learning_rate) * h.weight_decay;
      first_moment[i] = h.beta1 * first_moment[i] + (1.0 - h.beta1) * g;
      second_moment[i] = h.beta2 * second_moment[i] + (1.0 - h.beta2) * g * g;
      const double denominator = std::sqrt(second_moment[i] / correction2) + h.epsilon;
      parameter[i] -= h.learning_rate * (first_moment[i] / correction1) / denominator;
    }
  }
};

AdamWHyperparameters hyperparameters(std::int64_t step) {
  return {.learning_rate = 1e-2f,
          .beta1 = 0.9f,
          .beta2 = 0.95f,
          .epsilon = 1e-8f,
          .weight_decay = 0.1f,
          .step = step,
          .gradient_scale = 0.5f};
}

class AdamWTest : public test::OpTest {};

TEST_P(AdamWTest, TenStepsMatchTheReference) {
  for (const std::int64_t count : {1, 3, 17, 1000, 40001}) {
    const Values start = test::random_values(count, 1);
    const Tensor parameter = tensor({count}, start);
    const Tensor gradient = zeros({count});
    const Tensor first = zeros({count});
    const Tensor second = zeros({count});
    ReferenceAdamW reference{test::widen(start), Reference(start.size()), Reference(start.size())};
    for (int step = 1; step <= 10; ++step) {
      const Values g = test::random_values(count, 100 + step, 0.1f);
      std::copy(g.begin(), g.end(), gradient.f32());
      adamw_step(hyperparameters(step), parameter, gradient, first, second);
      reference.step(hyperparameters(step), g);
    }
    test::expect_close(values(parameter), reference.parameter, 1e-6, "parameter");
    test::expect_close(values(first), reference.first_moment, 1e-6, "first_moment");
    test::expect_close(values(second), reference.second_moment, 1e-6, "second_moment");
  }
}

TEST_P(AdamWTest, WithoutGradientOnlyDecays) {
  const Tensor parameter = tensor({4}, {1.0f, -2.0f, 3.0f, 0.0f});
  adamw_step(hyperparameters(1), parameter, zeros({4}), zeros({4}), zeros({4}));
  test::expect_close(values(parameter), {0.999, -1.998, 2.997, 0.0}, 1e-6, "parameter");
}

TEST_P(AdamWTest, DoesNotDependOnTheNumberOfThreads) {
  expect_same_for_any_threads([&] {
    constexpr std::int64_t kCount = 50003;
    const Tensor parameter = tensor({kCount}, test::random_values(kCount, 1));
    const Tensor gradient = tensor({kCount}, test::random_values(kCount, 2));
    const Tensor first = tensor({kCount}, test::random_values(kCount, 3));
    const Tensor second = tensor({kCount}, Values(kCount, 0.3f));
    adamw_step(hyperparameters(7), parameter, gradient, first, second);
    return values(parameter);
  });
}

TEST_P(AdamWTest, RefusesShapesAndStepsThatDoNotFit) {
  const Tensor x = zeros({4});
  EXPECT_THROW(adamw_step(hyperparameters(1), x, zeros({5}), zeros({4}), zeros({4})),
               std::invalid_argument);
  EXPECT_THROW(adamw_step(hyperparameters(1), x, zeros({4}), Tensor(), zeros({4})),
               std::invalid_argument);
  EXPECT_THROW(adamw_step(hyperparameters(0), x, zeros({4}), zeros({4}), zeros({4})),
               std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(AdamWTest);

}  // namespace
}  // namespace chaski
