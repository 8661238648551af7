#include "kernels/rmsnorm.h"

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

class RmsnormTest : public test::OpTest {};

TEST_P(RmsnormTest, ForwardMatchesTheFormula) {
  for (const Sizes sizes : kSizes) {
    const Values x = test::random_values(sizes.rows * sizes.hidden, 1, 3.0f);
    const Values weight = test::random_values(sizes.hidden, 2);
    const Tensor y = zeros({sizes.rows, sizes.hidden});
    const Tensor inverse_rms = zeros({sizes.rows});
    const Tensor tx = tensor({sizes.rows, sizes.hidden}, x);
    const Tensor tw = tensor({sizes.hidden}, weight);
    rmsnorm_forward(tx, tw, kEpsilon, y, inverse_rms);
    Reference expected_inverse_rms;
    const Reference expected =
        reference_forward(test::widen(x), test::widen(weight), sizes, &expected_inverse_rms);
    test::expect_close(values(y), expected, 1e-6, "y");
    test::expect_close(values(inverse_rms), expected_inverse_rms, 1e-6, "inverse_rms");

    const Tensor without = zeros({sizes.rows, sizes.hidden});
    rmsnorm_forward(tx, tw, kEpsilon, without, Tensor());
    EXPECT_TRUE(test::same_bits(values(without), values(y)));
    const Tensor again = zeros({sizes.rows, sizes.hidden});
    rmsnorm_recompute(tx, tw, inverse_rms, again);
    EXPECT_TRUE(test::same_bits(values(again), values(y)));
  }
}

TEST_P(RmsnormTest, AddsTheResidualFirst) {
  for (const Sizes sizes : kSizes) {
    const Values residual = test::random_values(sizes.rows * sizes.hidden, 3, 2.0f);
    const Values delta = test::random_values(sizes.rows * sizes.hidden, 4);
    const Values weight = test::random_values(sizes.hidden, 5);
    Reference sum = test::widen(residual);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
    for (const bool in_place : {false, true}) {
      const Tensor tr = tensor({sizes.rows, sizes.hidden}, residual);
      const Tensor out = in_place ? tr : zeros({sizes.rows, sizes.hidden});
      const Tensor y = zeros({sizes.rows, sizes.hidden});
      const Tensor inverse_rms = zeros({sizes.rows});
      add_rmsnorm_forward(tr, tensor({sizes.rows, sizes.hidden}, delta),
                          tensor({sizes.hidden}, weight), kEpsilon, out, y, inverse_rms);
      test::expect_close(values(out), sum, 1e-6, "residual_out");
      test::expect_close(values(y), reference_forward(sum, test::widen(weight), sizes), 1e-6, "y");
    }
  }
}

TEST_P(RmsnormTest, BackwardMatchesFiniteDifferences) {
  for (const Sizes sizes : {Sizes{1, 1}, Sizes{3, 17}, Sizes{70, 5}}) {
    const Values x = test::random_values(sizes.rows * sizes.hidden, 6);
    const Values weight = test::random_values(sizes.hidden, 7);
    const Values dy = test::random_values(sizes.rows * sizes.hidden, 8);
    const Values dx_before = test::random_values(sizes.rows * sizes.hidden, 9);
    const Values dweight_before = test::random_values(sizes.hidden, 10);
    const Tensor tx = tensor({sizes.rows, sizes.hidden}, x);
    const Tensor tw = tensor({sizes.hidden}, weight);
    const Tensor inverse_rms = zeros({sizes.rows});
    rmsnorm_forward(tx, tw, kEpsilon, zeros({sizes.rows, sizes.hidden}), inverse_rms);
    const Tensor dx = tensor({sizes.rows, sizes.hidden}, dx_before);
    const Tensor dweight = tensor({sizes.hidden}, dweight_before);
    const Tensor tdy = tensor({sizes.rows, sizes.hidden}, dy);
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
    test::expect_close(values(dx), expected_dx, 2e-6, "dx");
    test::expect_close(values(dweight), expected_dweight, 2e-6, "dweight");

    const Tensor frozen_dx = tensor({sizes.rows, sizes.hidden}, dx_before);
    rmsnorm_backward(tx, tw, inverse_rms, tdy, frozen_dx, Tensor());
    EXPECT_TRUE(test::same_bits(values(frozen_dx), values(dx)));
  }
}

TEST_P(RmsnormTest, DoesNotDependOnTheNumberOfThreads) {
  const Sizes sizes = {531, 77};
  const std::int64_t count = sizes.rows * sizes.hidden;
  expect_same_for_any_threads([&] {
    const Shape shape = {sizes.rows, sizes.hidden};
    const Tensor weight = tensor({sizes.hidden}, test::random_values(sizes.hidden, 11));
    const Tensor x = tensor(shape, test::random_values(count, 12));
    const Tensor y = zeros(shape);
    const Tensor inverse_rms = zeros({sizes.rows});
    add_rmsnorm_forward(x, tensor(shape, test::random_values(count, 13)), weight, kEpsilon, x, y,
                        inverse_rms);
    const Tensor dx = zeros(shape);
    const Tensor dweight = zeros({sizes.hidden});
    rmsnorm_backward(x, weight, inverse_rms, tensor(shape, test::random_values(count, 14)), dx,
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
