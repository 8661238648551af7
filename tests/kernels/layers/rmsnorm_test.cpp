#include "kernels/layers/rmsnorm.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;

constexpr float kEpsilon = 1e-5f;

struct Sizes {
  std::int64_t rows;
  std::int64_t hidden;
};
constexpr Sizes kSizes[] = {{1, 1}, {3, 17}, {65, 8}, {2, 1000}, {130, 33}};

Reference reference_forward(const Reference& x, const Reference& weight, Sizes sizes,
                            Reference* inverse_rms = nullptr) {
  Reference y(x.size());
  for (std::int64_t r = 0; r < sizes.rows; ++r) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < sizes.hidden; ++i) {
      const double value = x[r * sizes.hidden + i];
      sum += value * value;
    }
    const double scale = 1.0 / std::sqrt(sum / sizes.hidden + kEpsilon);
    if (inverse_rms != nullptr) inverse_rms->push_back(scale);
    for (std::int64_t i = 0; i < sizes.hidden; ++i)
      y[r * sizes.hidden + i] = x[r * sizes.hidden + i] * scale * weight[i];
  }
  return y;
}

double dot(const Reference& a, const Reference& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// What is added to dx and dweight, from the formula's derivative.
struct ReferenceGradients {
  Reference dx;
  Reference dweight;
};

ReferenceGradients reference_backward(const Reference& x, const Reference& weight,
                                      const Reference& dy, Sizes sizes) {
  ReferenceGradients gradients = {Reference(x.size()), Reference(weight.size())};
  Reference inverse_rms;
  reference_forward(x, weight, sizes, &inverse_rms);
  for (std::int64_t r = 0; r < sizes.rows; ++r) {
    const double scale = inverse_rms[r];
    const std::int64_t row = r * sizes.hidden;
    double product = 0.0;
    for (std::int64_t i = 0; i < sizes.hidden; ++i) product += dy[row + i] * weight[i] * x[row + i];
    for (std::int64_t i = 0; i < sizes.hidden; ++i) {
      gradients.dx[row + i] = dy[row + i] * weight[i] * scale -
                              x[row + i] * product * scale * scale * scale / sizes.hidden;
      gradients.dweight[i] += dy[row + i] * x[row + i] * scale;
    }
  }
  return gradients;
}

class RmsnormTest : public test::OpTest {
 protected:
  // With rows of every length class of the GPU's kernels.
  std::vector<Sizes> all_sizes() const {
    std::vector<Sizes> sizes(std::begin(kSizes), std::end(kSizes));
    for (const std::int64_t hidden : {24, 512, 1016, 2048, 3000, 4104, 8192, 8200, 16392})
      sizes.push_back({3, hidden});
    return sizes;
  }
};

TEST_P(RmsnormTest, ForwardMatchesTheFormula) {
  for (const Sizes sizes : all_sizes()) {
    const Values x = as_held(test::random_values(sizes.rows * sizes.hidden, 1, 3.0f));
    const Values weight = as_held(test::random_values(sizes.hidden, 2));
    const Tensor y = poisoned_activations({sizes.rows, sizes.hidden});
    const Tensor inverse_rms = zeros({sizes.rows});
    const Tensor tx = activations({sizes.rows, sizes.hidden}, x);
    const Tensor tw = activations({sizes.hidden}, weight);
    rmsnorm_forward(tx, tw, kEpsilon, y, inverse_rms);
    Reference expected_inverse_rms;
    const Reference expected =
        reference_forward(test::widen(x), test::widen(weight), sizes, &expected_inverse_rms);
    test::expect_close(values(y), expected, tolerance(2e-6), "y");
    test::expect_close(values(inverse_rms), expected_inverse_rms, on_cpu() ? 2e-6 : 1e-5,
                       "inverse_rms");

    const Tensor without = poisoned_activations({sizes.rows, sizes.hidden});
    rmsnorm_forward(tx, tw, kEpsilon, without, Tensor());
    EXPECT_TRUE(test::same_bits(values(without), values(y)));
    const Tensor again = poisoned_activations({sizes.rows, sizes.hidden});
    rmsnorm_recompute(tx, tw, inverse_rms, again);
    EXPECT_TRUE(test::same_bits(values(again), values(y)));
    const Tensor shifted = shifted_activations({sizes.rows, sizes.hidden}, x);
    rmsnorm_forward(shifted, tw, kEpsilon, without, Tensor());
    test::expect_close(values(without), expected, tolerance(2e-6), "y of shifted x");
    rmsnorm_recompute(shifted, tw, inverse_rms, again);
    EXPECT_TRUE(test::same_bits(values(again), values(y)));
  }
}

TEST_P(RmsnormTest, AddsTheResidualFirst) {
  for (const Sizes sizes : all_sizes()) {
    const Values residual = as_held(test::random_values(sizes.rows * sizes.hidden, 3, 2.0f));
    const Values delta = as_held(test::random_values(sizes.rows * sizes.hidden, 4));
    const Values weight = as_held(test::random_values(sizes.hidden, 5));
    Reference sum = test::widen(residual);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
    for (const bool in_place : {false, true}) {
      const Tensor tr = activations({sizes.rows, sizes.hidden}, residual);
      const Tensor out = in_place ? tr : poisoned_activations({sizes.rows, sizes.hidden});
      const Tensor y = poisoned_activations({sizes.rows, sizes.hidden});
      const Tensor inverse_rms = zeros({sizes.rows});
      add_rmsnorm_forward(tr, activations({sizes.rows, sizes.hidden}, delta),
                          activations({sizes.hidden}, weight), kEpsilon, out, y, inverse_rms);
      test::expect_close(values(out), sum, tolerance(2e-6), "residual_out");
      test::expect_close(values(y), reference_forward(sum, test::widen(weight), sizes),
                         tolerance(2e-6), "y");
      // The backward pass starts from what residual_out holds.
      const Tensor again = poisoned_activations({sizes.rows, sizes.hidden});
      rmsnorm_recompute(out, activations({sizes.hidden}, weight), inverse_rms, again);
      EXPECT_TRUE(test::same_bits(values(again), values(y)));
    }
  }
}

TEST_P(RmsnormTest, BackwardMatchesFiniteDifferences) {
  for (const Sizes sizes : {Sizes{1, 1}, Sizes{3, 17}, Sizes{70, 5}}) {
    const Values x = as_held(test::random_values(sizes.rows * sizes.hidden, 6));
    const Values weight = as_held(test::random_values(sizes.hidden, 7));
    const Values dy = as_held(test::random_values(sizes.rows * sizes.hidden, 8));
    const Values dx_before = as_held(test::random_values(sizes.rows * sizes.hidden, 9));
    const Values dweight_before = test::random_values(sizes.hidden, 10);
    const Tensor tx = activations({sizes.rows, sizes.hidden}, x);
    const Tensor tw = activations({sizes.hidden}, weight);
    const Tensor inverse_rms = zeros({sizes.rows});
    rmsnorm_forward(tx, tw, kEpsilon, poisoned_activations({sizes.rows, sizes.hidden}),
                    inverse_rms);
    const Tensor dx = activations({sizes.rows, sizes.hidden}, dx_before);
    const Tensor dweight = tensor({sizes.hidden}, dweight_before);
    const Tensor tdy = activations({sizes.rows, sizes.hidden}, dy);
    rmsnorm_backward(tx, tw, inverse_rms, tdy, dx, dweight);

    Reference expected_dx = test::central_differences(
        [&](const Reference& at) {
          return dot(reference_forward(at, test::widen(weight), sizes), test::widen(dy));
        },
        test::widen(x));
    for (std::size_t i = 0; i < expected_dx.size(); ++i) expected_dx[i] += dx_before[i];
    Reference expected_dweight = test::central_differences(
        [&](const Reference& at) {
          return dot(reference_forward(test::widen(x), at, sizes), test::widen(dy));
        },
        test::widen(weight));
    for (std::size_t i = 0; i < expected_dweight.size(); ++i)
      expected_dweight[i] += dweight_before[i];
    test::expect_close(values(dx), expected_dx, tolerance(2e-6), "dx");
    test::expect_close(values(dweight), expected_dweight, tolerance(2e-6), "dweight");

    const Tensor frozen_dx = activations({sizes.rows, sizes.hidden}, dx_before);
    rmsnorm_backward(tx, tw, inverse_rms, tdy, frozen_dx, Tensor());
    EXPECT_TRUE(test::same_bits(values(frozen_dx), values(dx)));
  }
}

TEST_P(RmsnormTest, BackwardOfRowsOfEveryLength) {
  for (const Sizes sizes : all_sizes()) {
    const Shape shape = {sizes.rows, sizes.hidden};
    const Values x = as_held(test::random_values(sizes.rows * sizes.hidden, 15));
    const Values weight = as_held(test::random_values(sizes.hidden, 16));
    const Values dy = as_held(test::random_values(sizes.rows * sizes.hidden, 17));
    const Values dx_before = as_held(test::random_values(sizes.rows * sizes.hidden, 18));
    const Values dweight_before = as_held(test::random_values(sizes.hidden, 19));
    ReferenceGradients expected =
        reference_backward(test::widen(x), test::widen(weight), test::widen(dy), sizes);
    for (std::size_t i = 0; i < x.size(); ++i) expected.dx[i] += dx_before[i];
    for (std::size_t i = 0; i < weight.size(); ++i) expected.dweight[i] += dweight_before[i];
    const Tensor tw = activations({sizes.hidden}, weight);
    const Tensor tdy = activations(shape, dy);
    const Tensor inverse_rms = zeros({sizes.rows});
    for (const DType type : weight_gradient_types()) {
      for (const bool shifted : {false, true}) {
        const Tensor tx = shifted ? shifted_activations(shape, x) : activations(shape, x);
        rmsnorm_forward(tx, tw, kEpsilon, poisoned_activations(shape), inverse_rms);
        const Tensor dx = activations(shape, dx_before);
        const Tensor dweight = weight_gradient({sizes.hidden}, dweight_before, type);
        rmsnorm_backward(tx, tw, inverse_rms, tdy, dx, dweight);
        test::expect_close(values(dx), expected.dx, tolerance(2e-6), "dx");
        test::expect_close(values(dweight), expected.dweight, tolerance(2e-6), "dweight");
      }
    }
  }
}

TEST_P(RmsnormTest, DoesNotDependOnTheNumberOfThreads) {
  const Sizes sizes = on_cpu() ? Sizes{531, 77} : Sizes{83, 40};
  const std::int64_t count = sizes.rows * sizes.hidden;
  expect_same_for_any_threads([&] {
    const Shape shape = {sizes.rows, sizes.hidden};
    const Tensor weight = activations({sizes.hidden}, test::random_values(sizes.hidden, 11));
    const Tensor x = activations(shape, test::random_values(count, 12));
    const Tensor y = poisoned_activations(shape);
    const Tensor inverse_rms = zeros({sizes.rows});
    add_rmsnorm_forward(x, activations(shape, test::random_values(count, 13)), weight, kEpsilon, x,
                        y, inverse_rms);
    const Tensor dx = activations(shape, Values(static_cast<std::size_t>(count)));
    const Tensor dweight = zeros({sizes.hidden});
    rmsnorm_backward(x, weight, inverse_rms, activations(shape, test::random_values(count, 14)), dx,
                     dweight);
    Values all = values(y);
    for (const Tensor& part : {inverse_rms, dx, dweight}) {
      const Values more = values(part);
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  });
}

TEST_P(RmsnormTest, RefusesShapesThatDoNotFit) {
  const Tensor x = zeros({4, 8});
  const Tensor weight = zeros({8});
  const Tensor inverse_rms = zeros({4});
  EXPECT_THROW(rmsnorm_forward(x, zeros({7}), kEpsilon, x, Tensor()), std::invalid_argument);
  EXPECT_THROW(rmsnorm_forward(x, weight, kEpsilon, zeros({8, 4}), Tensor()),
               std::invalid_argument);
  EXPECT_THROW(rmsnorm_forward(x, weight, kEpsilon, zeros({4, 8}), zeros({5})),
               std::invalid_argument);
  EXPECT_THROW(rmsnorm_forward(Tensor(), weight, kEpsilon, x, Tensor()), std::invalid_argument);
  EXPECT_THROW(
      add_rmsnorm_forward(x, zeros({4, 9}), weight, kEpsilon, x, zeros({4, 8}), inverse_rms),
      std::invalid_argument);
  EXPECT_THROW(add_rmsnorm_forward(x, Tensor(), weight, kEpsilon, x, zeros({4, 8}), inverse_rms),
               std::invalid_argument);
  EXPECT_THROW(rmsnorm_backward(x, weight, inverse_rms, x, zeros({3, 8}), Tensor()),
               std::invalid_argument);
  EXPECT_THROW(rmsnorm_backward(x, weight, inverse_rms, x, zeros({4, 8}), zeros({9})),
               std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(RmsnormTest);

}  // namespace
}  // namespace chaski
