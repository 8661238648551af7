#include "kernels/optimizer/adamw.h"

#include "kernels/optimizer/adamw_cpu.h"
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

class AdamWTest : public test::OpTest {
 protected:
  double fp32_tolerance() const { return on_cpu() ? 1e-6 : 1e-5; }
};

Values in_bf16_bits(Values values) {
  for (float& value : values) value = float_from_bf16(bf16_from_float(value));
  return values;
}

TEST_P(AdamWTest, TenStepsMatchTheReference) {
  const std::int64_t longest = on_cpu() ? 40001 : 2003;
  for (const std::int64_t count :
       {std::int64_t{1}, std::int64_t{3}, std::int64_t{17}, std::int64_t{1000}, longest}) {
    const Values start = test::random_values(count, 1);
    const Tensor parameter = tensor({count}, start);
    const Tensor gradient = zeros({count});
    const Tensor first = zeros({count});
    const Tensor second = zeros({count});
    const Tensor compute = zeros({count}, DType::bf16);
    ReferenceAdamW reference{test::widen(start), Reference(start.size()), Reference(start.size())};
    for (int step = 1; step <= 10; ++step) {
      const Values g = test::random_values(count, 100 + step, 0.1f);
      copy_from_host(g.data(), gradient);
      adamw_step(hyperparameters(step), parameter, gradient, first, second,
                 step == 10 ? compute : Tensor());
      reference.step(hyperparameters(step), g);
    }
    test::expect_close(values(parameter), reference.parameter, fp32_tolerance(), "parameter");
    test::expect_close(values(first), reference.first_moment, fp32_tolerance(), "first_moment");
    test::expect_close(values(second), reference.second_moment, fp32_tolerance(), "second_moment");
    EXPECT_EQ(values(compute), in_bf16_bits(values(parameter)));
  }
}

TEST_P(AdamWTest, OneStepOfBf16RoundsToNearest) {
  if (!in_bf16()) GTEST_SKIP() << "only GPUs keep parameters in bf16";
  for (const std::int64_t count : {1, 8, 17, 1003}) {
    const Values start = as_held(test::random_values(count, 1));
    const Values g = as_held(test::random_values(count, 2, 0.1f));
    ReferenceAdamW reference{test::widen(start), Reference(start.size()), Reference(start.size())};
    reference.step(hyperparameters(1), g);
    for (const bool shifted : {false, true}) {
      const Tensor parameter =
          shifted ? shifted_activations({count}, start) : activations({count}, start);
      const Tensor first = activations({count}, Values(start.size()));
      const Tensor second = activations({count}, Values(start.size()));
      adamw_step(hyperparameters(1), parameter, activations({count}, g), first, second);
      test::expect_close(values(parameter), reference.parameter, 4e-3, "parameter");
      test::expect_close(values(first), reference.first_moment, 4e-3, "first_moment");
      test::expect_close(values(second), reference.second_moment, 4e-3, "second_moment");
    }
  }
}

// Updates of a fortieth of what separates neighbours: to nearest nothing happens, stochastically
// one element in forty moves by a whole step.
TEST_P(AdamWTest, StochasticRoundingKeepsSmallUpdatesOnAverage) {
  if (!in_bf16()) GTEST_SKIP() << "only GPUs keep parameters in bf16";
  constexpr std::int64_t kCount = 8009;
  constexpr float kNeighbour = 1.0f - 1.0f / 256.0f;
  AdamWHyperparameters h = hyperparameters(1);
  h.learning_rate = 1e-4f;
  h.weight_decay = 0.0f;
  const auto run = [&](const AdamWHyperparameters& chosen, bool shifted) {
    const Values ones(kCount, 1.0f);
    const Tensor parameter =
        shifted ? shifted_activations({kCount}, ones) : activations({kCount}, ones);
    const Tensor first = activations({kCount}, Values(kCount));
    const Tensor second = activations({kCount}, Values(kCount));
    adamw_step(chosen, parameter, activations({kCount}, ones), first, second);
    Values all = values(parameter);
    for (const float value : all) EXPECT_TRUE(value == 1.0f || value == kNeighbour) << value;
    const Values moments = values(first);
    all.insert(all.end(), moments.begin(), moments.end());
    return all;
  };
  const auto moved = [&](const Values& all) {
    return static_cast<double>(std::count(all.begin(), all.begin() + kCount, kNeighbour));
  };
  EXPECT_EQ(moved(run(h, false)), 0.0);
  h.stochastic_rounding = true;
  h.seed = 11;
  h.stream = 3;
  const Values all = run(h, false);
  const double expected = kCount * 1e-4 * 256.0;
  EXPECT_NEAR(moved(all), expected, 5.0 * std::sqrt(expected));
  double mean = 0.0;
  for (std::int64_t i = kCount; i < 2 * kCount; ++i) mean += all[i] / static_cast<double>(kCount);
  EXPECT_NEAR(mean, 0.05, 5.0 * 1e-4 / std::sqrt(static_cast<double>(kCount)));
  // Each number has noise of its own: neighbours do not move together, nor does a moment with its
  // parameter.
  const double share = expected / kCount;
  for (std::int64_t apart = 1; apart <= 4; ++apart) {
    double both = 0.0;
    for (std::int64_t i = 0; i + apart < kCount; ++i) {
      both += all[i] == kNeighbour && all[i + apart] == kNeighbour ? 1.0 : 0.0;
    }
    EXPECT_LT(both, share * expected + 6.0 * std::sqrt(share * expected)) << apart << " apart";
  }
  double up = 0.0;
  double up_where_moved = 0.0;
  for (std::int64_t i = 0; i < kCount; ++i) {
    const double is_up = all[kCount + i] > 0.05f ? 1.0 : 0.0;
    up += is_up / kCount;
    if (all[i] == kNeighbour) up_where_moved += is_up / moved(all);
  }
  EXPECT_NEAR(up_where_moved, up, 5.0 * std::sqrt(up * (1.0 - up) / expected));
  EXPECT_TRUE(test::same_bits(run(h, true), all));
  AdamWHyperparameters other = h;
  other.stream = 4;
  EXPECT_FALSE(test::same_bits(run(other, false), all));
  other = h;
  other.seed = 12;
  EXPECT_FALSE(test::same_bits(run(other, false), all));
}

TEST_P(AdamWTest, WithoutGradientOnlyDecays) {
  const Tensor parameter = tensor({4}, {1.0f, -2.0f, 3.0f, 0.0f});
  adamw_step(hyperparameters(1), parameter, zeros({4}), zeros({4}), zeros({4}));
  test::expect_close(values(parameter), {0.999, -1.998, 2.997, 0.0}, 1e-6, "parameter");
}

TEST_P(AdamWTest, DoesNotDependOnTheNumberOfThreads) {
  expect_same_for_any_threads([&] {
    const std::int64_t count = on_cpu() ? 50003 : 1003;
    const Tensor parameter = activations({count}, test::random_values(count, 1));
    const Tensor gradient = activations({count}, test::random_values(count, 2));
    const Tensor first = activations({count}, test::random_values(count, 3));
    const Tensor second = activations({count}, Values(static_cast<std::size_t>(count), 0.3f));
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
  const Tensor half = zeros({4}, DType::bf16);
  EXPECT_THROW(adamw_step(hyperparameters(1), x, half, zeros({4}), zeros({4})),
               std::invalid_argument);
  EXPECT_THROW(adamw_step(hyperparameters(1), x, zeros({4}), zeros({4}), zeros({4}), zeros({4})),
               std::invalid_argument);
  if (!on_cpu()) return;
  EXPECT_THROW(adamw_step(hyperparameters(1), half, half, half, half), std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(AdamWTest);

#if defined(__x86_64__)
// Parameter, moments and rounded parameter after a few updates by one instruction set's kernel.
struct UpdatedBits {
  explicit UpdatedBits(const AdamWKernels& kernels) {
    for (int step = 1; step <= 5; ++step) {
      const Values gradient = test::random_values(kCount, 10 + step, step % 2 ? 1e-3f : 30.0f);
      const double correction1 = 1.0 - std::pow(0.9, step);
      const double correction2 = 1.0 - std::pow(0.95, step);
      const AdamWFactors factors{
          .gradient_scale = 0.37f,
          .decay = 0.9997f,
          .beta1 = 0.9f,
          .one_minus_beta1 = 1.0f - 0.9f,
          .beta2 = 0.95f,
          .one_minus_beta2 = 1.0f - 0.95f,
          .step_size = static_cast<float>(3e-3 / correction1),
          .inverse_sqrt_correction = static_cast<float>(1.0 / std::sqrt(correction2)),
          .epsilon = 1e-8f};
      kernels.step(factors, parameter.data(), gradient.data(), first.data(), second.data(),
                   compute.data(), kCount, 2);
    }
  }
  bool operator==(const UpdatedBits& other) const {
    return test::same_bits(parameter, other.parameter) && test::same_bits(first, other.first) &&
           test::same_bits(second, other.second) && compute == other.compute;
  }

  static constexpr std::int64_t kCount = 200003;
  Values parameter = test::random_values(kCount, 1);
  Values first = Values(kCount);
  Values second = Values(kCount);
  std::vector<std::uint16_t> compute = std::vector<std::uint16_t>(kCount);
};

// Replicas on unlike processors update the same weights, each for itself.
TEST(AdamWOnCpus, GivesTheSameBitsOnAllInstructionSets) {
  const UpdatedBits expected(cpu_baseline::adamw_kernels);
  const CpuIsa best = cpu_isa();
  if (best == CpuIsa::baseline) GTEST_SKIP() << "this processor has only one of them";
  EXPECT_TRUE(UpdatedBits(cpu_avx2::adamw_kernels) == expected);
  if (best == CpuIsa::avx2) return;
  EXPECT_TRUE(UpdatedBits(cpu_avx512::adamw_kernels) == expected);
}
#endif

}  // namespace
}  // namespace chaski
