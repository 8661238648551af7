#include "kernels/elementwise.h"

#include <limits>

#include "kernels/philox.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Values;

constexpr std::int64_t kSizes[] = {1, 3, 17, 1000, 65536, 200003};

class ElementwiseTest : public test::OpTest {};

TEST_P(ElementwiseTest, FillCopyAddScale) {
  for (const std::int64_t count : kSizes) {
    const Values a = test::random_values(count, 1);
    const Values b = test::random_values(count, 2);
    const Tensor out = zeros({count});
    fill(out, 2.5f);
    EXPECT_EQ(values(out), Values(a.size(), 2.5f));
    copy(tensor({count}, a), out);
    EXPECT_EQ(values(out), a);
    add(out, tensor({count}, b), out);
    Values expected = a;
    for (std::size_t i = 0; i < a.size(); ++i) expected[i] += b[i];
    EXPECT_EQ(values(out), expected);
    scale(out, -0.5f);
    for (float& value : expected) value *= -0.5f;
    EXPECT_EQ(values(out), expected);
  }
  const Tensor numbers = integers({7, -8, 9});
  const Tensor copied = zeros({3}, DType::i32);
  copy(numbers, copied);
  EXPECT_EQ(copied.i32()[1], -8);
}

TEST_P(ElementwiseTest, SumsAreThoseOfDouble) {
  for (const std::int64_t count : kSizes) {
    const Values x = test::random_values(count, 3);
    long double total = 0.0;
    long double squares = 0.0;
    for (const float value : x) {
      total += value;
      squares += static_cast<long double>(value) * value;
    }
    const Tensor tx = tensor({count}, x);
    EXPECT_NEAR(sum(tx), static_cast<double>(total), 1e-10 * static_cast<double>(squares) + 1e-12);
    EXPECT_NEAR(sum_of_squares(tx), static_cast<double>(squares),
                1e-12 * static_cast<double>(squares));
  }
  const Tensor large = tensor({2}, {1e30f, 2e30f});
  EXPECT_NEAR(sum_of_squares(large) / 5e60, 1.0, 1e-6);
}

TEST_P(ElementwiseTest, CountsNanAndInfinity) {
  for (const std::int64_t count : kSizes) {
    Values x = test::random_values(count, 4);
    EXPECT_EQ(count_nonfinite(tensor({count}, x)), 0);
    x.front() = std::numeric_limits<float>::infinity();
    EXPECT_EQ(count_nonfinite(tensor({count}, x)), 1);
    x.back() = std::nanf("");
    EXPECT_EQ(count_nonfinite(tensor({count}, x)), count == 1 ? 1 : 2);
    x[x.size() / 2] = -std::numeric_limits<float>::infinity();
    EXPECT_EQ(count_nonfinite(tensor({count}, x)), std::min<std::int64_t>(count, 3));
  }
  constexpr float kMax = std::numeric_limits<float>::max();
  EXPECT_EQ(count_nonfinite(tensor({2}, {kMax, -kMax})), 0);
  EXPECT_TRUE(std::isnan(sum(tensor({2}, {1.0f, std::nanf("")}))));
}

TEST_P(ElementwiseTest, DoesNotDependOnTheNumberOfThreads) {
  constexpr std::int64_t kCount = 300007;
  expect_same_for_any_threads([&] {
    const Tensor x = zeros({kCount});
    fill_normal(x, 0.1f, 2.0f, 5, 6);
    const Tensor y = tensor({kCount}, test::random_values(kCount, 5));
    add(x, y, x);
    scale(x, 1.1f);
    Values all = values(x);
    // A double as two floats' worth of bits.
    for (const double total : {sum(x), sum_of_squares(x)}) {
      float halves[2];
      std::memcpy(halves, &total, sizeof(total));
      all.insert(all.end(), halves, halves + 2);
    }
    return all;
  });
}

TEST_P(ElementwiseTest, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(copy(zeros({3}), zeros({4})), std::invalid_argument);
  EXPECT_THROW(copy(zeros({3}), zeros({3}, DType::i32)), std::invalid_argument);
  EXPECT_THROW(add(zeros({3}), zeros({4}), zeros({3})), std::invalid_argument);
  EXPECT_THROW(add(zeros({3}), zeros({3}), zeros({2})), std::invalid_argument);
  EXPECT_THROW(fill(Tensor(), 1.0f), std::invalid_argument);
  const Tensor x = zeros({10});
  EXPECT_THROW(copy(x.rows(0, 6), x.rows(4, 6)), std::invalid_argument);
}

// Known answers of Random123 1.14 (tests/kat_vectors: philox4x32 10).
TEST(PhiloxTest, KnownAnswers) {
  using Words = std::array<std::uint32_t, 4>;
  constexpr std::uint32_t kOnes = 0xffffffffu;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(
      philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      (Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST_P(ElementwiseTest, NormalNumbersHaveTheMomentsOfANormal) {
  constexpr std::int64_t kCount = 1000000;
  const Tensor x = zeros({kCount});
  fill_normal(x, 3.0f, 0.5f, 42, 7);
  double moments[5] = {};
  std::int64_t beyond_two = 0;
  for (const float value : values(x)) {
    const double z = (value - 3.0) / 0.5;
    double power = 1.0;
    for (double& moment : moments) {
      moment += power / kCount;
      power *= z;
    }
    beyond_two += std::abs(z) > 2.0 ? 1 : 0;
  }
  // Five standard errors: of z^k over a million samples.
  EXPECT_NEAR(moments[1], 0.0, 5e-3);
  EXPECT_NEAR(moments[2], 1.0, 5e-3 * std::sqrt(2.0));
  EXPECT_NEAR(moments[3], 0.0, 5e-3 * std::sqrt(15.0));
  EXPECT_NEAR(moments[4], 3.0, 5e-3 * std::sqrt(96.0));
  EXPECT_NEAR(static_cast<double>(beyond_two) / kCount, 0.0455003, 5e-3 * std::sqrt(0.0435));
}

TEST_P(ElementwiseTest, NormalNumbersAreAFunctionOfSeedStreamAndIndex) {
  const Tensor x = zeros({1003});
  fill_normal(x, 0.0f, 1.0f, 1, 2);
  const Values all = values(x);
  const Tensor prefix = zeros({10});
  fill_normal(prefix, 0.0f, 1.0f, 1, 2);
  EXPECT_EQ(values(prefix), Values(all.begin(), all.begin() + 10));
  const std::pair<std::uint64_t, std::uint64_t> others[] = {
      {2, 2}, {1, 3}, {1 + (std::uint64_t{1} << 32), 2}, {1, 2 + (std::uint64_t{1} << 32)}};
  for (const auto& [seed, stream] : others) {
    fill_normal(prefix, 0.0f, 1.0f, seed, stream);
    const Values other = values(prefix);
    for (std::size_t i = 0; i < other.size(); ++i) EXPECT_NE(other[i], all[i]);
  }
}

// Lag correlations: neighbours come from one Box-Muller pair or one counter.
TEST_P(ElementwiseTest, NeighbouringNormalNumbersAreUncorrelated) {
  constexpr std::int64_t kCount = 200000;
  const Tensor x = zeros({kCount});
  fill_normal(x, 0.0f, 1.0f, 9, 9);
  const Values z = values(x);
  for (const std::size_t lag : {1, 2, 3, 4}) {
    double correlation = 0.0;
    for (std::size_t i = 0; i + lag < z.size(); ++i) correlation += z[i] * z[i + lag] / kCount;
    EXPECT_NEAR(correlation, 0.0, 5.0 / std::sqrt(static_cast<double>(kCount))) << lag;
  }
}

CHASKI_ON_ALL_DEVICES(ElementwiseTest);

}  // namespace
}  // namespace chaski
