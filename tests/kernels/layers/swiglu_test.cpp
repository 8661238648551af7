#include "kernels/layers/swiglu.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;

struct Sizes {
  std::int64_t rows;
  std::int64_t size;
};
constexpr Sizes kSizes[] = {{1, 1}, {3, 17}, {17, 3}, {5, 24}, {2, 1000}};

Reference reference_forward(const Reference& gate_up, Sizes sizes) {
  Reference activation(static_cast<std::size_t>(sizes.rows * sizes.size));
  for (std::int64_t r = 0; r < sizes.rows; ++r) {
    for (std::int64_t i = 0; i < sizes.size; ++i) {
      const double gate = gate_up[r * 2 * sizes.size + i];
      const double up = gate_up[r * 2 * sizes.size + sizes.size + i];
      activation[r * sizes.size + i] = gate / (1.0 + std::exp(-gate)) * up;
    }
  }
  return activation;
}

class SwigluTest : public test::OpTest {};

TEST_P(SwigluTest, ForwardMatchesTheFormula) {
  for (const Sizes sizes : kSizes) {
    for (const float limit : {1.0f, 40.0f}) {
      const Values gate_up = test::random_values(sizes.rows * 2 * sizes.size, 1, limit);
      const Reference expected = reference_forward(test::widen(as_held(gate_up)), sizes);
      const Tensor activation = poisoned_activations({sizes.rows, sizes.size});
      swiglu_forward(activations({sizes.rows, 2 * sizes.size}, gate_up), activation);
      test::expect_close(values(activation), expected, tolerance(1e-6), "activation");
      const Tensor shifted = poisoned_activations({sizes.rows, sizes.size});
      swiglu_forward(shifted_activations({sizes.rows, 2 * sizes.size}, gate_up), shifted);
      EXPECT_TRUE(test::same_bits(values(shifted), values(activation)));
    }
  }
}

TEST_P(SwigluTest, BackwardMatchesFiniteDifferences) {
  for (const Sizes sizes : {Sizes{1, 1}, Sizes{3, 17}, Sizes{17, 3}, Sizes{2, 16}}) {
    const Values gate_up = as_held(test::random_values(sizes.rows * 2 * sizes.size, 2, 4.0f));
    const Values dactivation = as_held(test::random_values(sizes.rows * sizes.size, 3));
    const Tensor tg = activations({sizes.rows, 2 * sizes.size}, gate_up);
    const Tensor dgate_up = poisoned_activations({sizes.rows, 2 * sizes.size});
    const Tensor activation = poisoned_activations({sizes.rows, sizes.size});
    swiglu_backward(tg, activations({sizes.rows, sizes.size}, dactivation), dgate_up, activation);
    const Reference expected = test::central_differences(
        [&](const Reference& at) {
          const Reference y = reference_forward(at, sizes);
          double sum = 0.0;
          for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * dactivation[i];
          return sum;
        },
        test::widen(gate_up));
    test::expect_close(values(dgate_up), expected, tolerance(1e-6), "dgate_up");
    test::expect_close(values(activation), reference_forward(test::widen(gate_up), sizes),
                       tolerance(1e-6), "activation");
  }
}

TEST_P(SwigluTest, BackwardInPlaceGivesTheSame) {
  for (const Sizes sizes : kSizes) {
    const Values gate_up = test::random_values(sizes.rows * 2 * sizes.size, 4, 4.0f);
    const Values dactivation = test::random_values(sizes.rows * sizes.size, 5);
    const Tensor tg = activations({sizes.rows, 2 * sizes.size}, gate_up);
    const Tensor td = activations({sizes.rows, sizes.size}, dactivation);
    const Tensor dgate_up = poisoned_activations({sizes.rows, 2 * sizes.size});
    const Tensor activation = poisoned_activations({sizes.rows, sizes.size});
    swiglu_backward(tg, td, dgate_up, activation);
    const Tensor without = poisoned_activations({sizes.rows, 2 * sizes.size});
    swiglu_backward(tg, td, without, Tensor());
    EXPECT_TRUE(test::same_bits(values(without), values(dgate_up)));
    swiglu_backward(tg, td, tg, td);
    EXPECT_TRUE(test::same_bits(values(tg), values(dgate_up)));
    EXPECT_TRUE(test::same_bits(values(td), values(activation)));
  }
}

TEST_P(SwigluTest, LetsNanThrough) {
  Values gate_up = test::random_values(2 * 40, 6);
  gate_up[7] = std::nanf("");
  const Tensor activation = activations({1, 40}, Values(40));
  swiglu_forward(activations({1, 80}, gate_up), activation);
  const Values result = values(activation);
  for (std::size_t i = 0; i < result.size(); ++i) EXPECT_EQ(std::isnan(result[i]), i == 7);
}

TEST_P(SwigluTest, DoesNotDependOnTheNumberOfThreads) {
  const Sizes sizes = on_cpu() ? Sizes{101, 333} : Sizes{11, 33};
  expect_same_for_any_threads([&] {
    const Tensor gate_up = activations({sizes.rows, 2 * sizes.size},
                                       test::random_values(sizes.rows * 2 * sizes.size, 7, 5.0f));
    const Tensor activation = poisoned_activations({sizes.rows, sizes.size});
    swiglu_forward(gate_up, activation);
    swiglu_backward(gate_up, activation, gate_up, Tensor());
    Values all = values(activation);
    const Values more = values(gate_up);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  });
}

TEST_P(SwigluTest, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(swiglu_forward(zeros({2, 5}), zeros({2, 2})), std::invalid_argument);
  EXPECT_THROW(swiglu_forward(zeros({2, 6}), zeros({2, 6})), std::invalid_argument);
  EXPECT_THROW(swiglu_forward(zeros({2, 6}), zeros({3, 2})), std::invalid_argument);
  EXPECT_THROW(swiglu_backward(zeros({2, 6}), zeros({2, 3}), zeros({2, 3}), Tensor()),
               std::invalid_argument);
  EXPECT_THROW(swiglu_backward(zeros({2, 6}), zeros({2, 3}), zeros({2, 6}), zeros({2, 2})),
               std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(SwigluTest);

}  // namespace
}  // namespace chaski
