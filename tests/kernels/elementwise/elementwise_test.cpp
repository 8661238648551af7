#include "kernels/elementwise/elementwise.h"

#include <array>
#include <bit>
#include <limits>
#include <numbers>

#include "kernels/elementwise/philox.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Values;

class ElementwiseTest : public test::OpTest {
 protected:
  std::vector<std::int64_t> sizes() const {
    if (on_cpu()) return {1, 3, 17, 1000, 65536, 200003};
    return {1, 3, 17, 1000, 16384, 50003};
  }
  Values normal_numbers(const Tensor& out, std::uint64_t seed, std::uint64_t stream) {
    fill_normal(out, 0.0f, 1.0f, seed, stream);
    return values(out);
  }
};

TEST_P(ElementwiseTest, FillCopyAddScale) {
  for (const std::int64_t count : sizes()) {
    const Values a = as_held(test::random_values(count, 1));
    const Values b = as_held(test::random_values(count, 2));
    for (const bool shifted : {false, true}) {
      const Values nothing(a.size(), std::nanf(""));
      const Tensor out =
          shifted ? shifted_activations({count}, nothing) : activations({count}, nothing);
      fill(out, 0.0f);
      EXPECT_EQ(values(out), Values(a.size(), 0.0f));
      fill(out, 2.5f);
      EXPECT_EQ(values(out), Values(a.size(), 2.5f));
      copy(activations({count}, a), out);
      EXPECT_EQ(values(out), a);
      add(out, activations({count}, b), out);
      Values expected = a;
      for (std::size_t i = 0; i < a.size(); ++i) expected[i] += b[i];
      EXPECT_EQ(values(out), as_held(expected));
      scale(out, -0.5f);
      for (float& value : expected) value *= -0.5f;
      EXPECT_EQ(values(out), as_held(expected));
    }
  }
  const Tensor numbers = integers({7, -8, 9});
  const Tensor copied = zeros({3}, DType::i32);
  copy(numbers, copied);
  std::int32_t back[3] = {};
  copy_to_host(copied, back);
  EXPECT_EQ(back[1], -8);
}

TEST_P(ElementwiseTest, CastsRoundToNearestEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::pair<float, float> known[] = {
      {1.0f, 1.0f},
      {1.0f + 0x1p-8f, 1.0f},                          // half way: to even
      {1.0f + 0x1p-7f + 0x1p-8f, 1.0f + 0x1p-6f},      // half way: to even
      {1.0f + 0x1p-8f + 0x1p-20f, 1.0f + 0x1p-7f},     // just above
      {-1.0f - 0x1p-8f + 0x1p-20f, -1.0f},             // just below
      {std::numeric_limits<float>::max(), kInfinity},  // beyond the largest bf16
      {-kInfinity, -kInfinity},
      {0x1p-133f, 0x1p-133f},  // the smallest bf16
      {0x1p-134f, 0.0f}};
  for (const std::int64_t count : sizes()) {
    Values x = test::random_values(count, 8, 1e3f);
    for (std::size_t i = 0; i < std::size(known) && i < x.size(); ++i) x[i] = known[i].first;
    const Tensor narrow = zeros({count + 1}, DType::bf16);
    for (const std::int64_t begin : {0, 1}) {
      const Tensor to = narrow.rows(begin, count);
      cast(tensor({count}, x), to);
      const Tensor wide = zeros({count});
      cast(to, wide);
      const Values result = values(wide);
      EXPECT_EQ(result, values(to));
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (i < std::size(known)) {
          ASSERT_EQ(result[i], known[i].second) << i;
        } else {
          ASSERT_LE(std::abs(result[i] - x[i]), std::abs(x[i]) * 0x1p-8f) << i;
        }
      }
    }
  }
  const Tensor nan = zeros({1}, DType::bf16);
  cast(tensor({1}, {std::nanf("")}), nan);
  EXPECT_TRUE(std::isnan(values(nan)[0]));
  const Tensor same = zeros({2});
  cast(tensor({2}, {1.25f, -3.0f}), same);
  EXPECT_EQ(values(same), (Values{1.25f, -3.0f}));
}

TEST_P(ElementwiseTest, SumsAreThoseOfDouble) {
  for (const std::int64_t count : sizes()) {
    const Values x = as_held(test::random_values(count, 3));
    long double total = 0.0;
    long double squares = 0.0;
    for (const float value : x) {
      total += value;
      squares += static_cast<long double>(value) * value;
    }
    const Tensor tx = activations({count}, x);
    const Tensor shifted = shifted_activations({count}, x);
    EXPECT_NEAR(sum_of_squares(shifted), static_cast<double>(squares),
                1e-12 * static_cast<double>(squares));
    EXPECT_NEAR(sum(tx), static_cast<double>(total), 1e-10 * static_cast<double>(squares) + 1e-12);
    EXPECT_NEAR(sum_of_squares(tx), static_cast<double>(squares),
                1e-12 * static_cast<double>(squares));
  }
  const Tensor large = activations({2}, {1e30f, 2e30f});
  EXPECT_NEAR(sum_of_squares(large) / 5e60, 1.0, tolerance(1e-6));
}

TEST_P(ElementwiseTest, CountsNanAndInfinity) {
  for (const std::int64_t count : sizes()) {
    Values x = test::random_values(count, 4);
    EXPECT_EQ(count_nonfinite(activations({count}, x)), 0);
    x.front() = std::numeric_limits<float>::infinity();
    EXPECT_EQ(count_nonfinite(activations({count}, x)), 1);
    x.back() = std::nanf("");
    EXPECT_EQ(count_nonfinite(activations({count}, x)), count == 1 ? 1 : 2);
    x[x.size() / 2] = -std::numeric_limits<float>::infinity();
    EXPECT_EQ(count_nonfinite(activations({count}, x)), std::min<std::int64_t>(count, 3));
  }
  constexpr float kMax = std::numeric_limits<float>::max();
  EXPECT_EQ(count_nonfinite(tensor({2}, {kMax, -kMax})), 0);
  EXPECT_TRUE(std::isnan(sum(activations({2}, {1.0f, std::nanf("")}))));
}

TEST_P(ElementwiseTest, DoesNotDependOnTheNumberOfThreads) {
  const std::int64_t count = on_cpu() ? 300007 : 40007;
  expect_same_for_any_threads([&] {
    const Tensor x = poisoned_activations({count});
    fill_normal(x, 0.1f, 2.0f, 5, 6);
    const Tensor y = activations({count}, test::random_values(count, 5));
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
  EXPECT_THROW(cast(zeros({3}), zeros({4}, DType::bf16)), std::invalid_argument);
  EXPECT_THROW(cast(zeros({3}), zeros({3}, DType::i32)), std::invalid_argument);
  const Tensor x = zeros({10});
  EXPECT_THROW(copy(x.rows(0, 6), x.rows(4, 6)), std::invalid_argument);
}

// Known answers of Random123 1.14 (tests/kat_vectors: philox4x32 10).
TEST(PhiloxTest, KnownAnswers) {
  using Words = std::array<std::uint32_t, 4>;
  constexpr std::uint32_t kOnes = 0xffffffffu;
  const auto words = [](PhiloxWords counter, std::uint64_t key) {
    return std::to_array(philox4x32(counter, key).at);
  };
  EXPECT_EQ(words({{0, 0, 0, 0}}, 0), (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(words({{kOnes, kOnes, kOnes, kOnes}}, ~std::uint64_t{0}),
            (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(words({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0x299f31d0a4093822u),
            (Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST_P(ElementwiseTest, NormalNumbersHaveTheMomentsOfANormal) {
  if (!on_cpu()) GTEST_SKIP() << "a GPU's are compared with the CPU's";
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

TEST_P(ElementwiseTest, NormalNumbersAreBoxMullers) {
  constexpr std::int64_t kCount = 40003;
  constexpr long double kUnit = 1.0L / 4294967296.0L;
  const Tensor x = poisoned_activations({kCount});
  fill_normal(x, 0.0f, 1.0f, 5, 3);
  const Values result = values(x);
  // Half a unit in the last place, from a double that is right to within a few of its own.
  const double half_unit = in_bf16() ? 0x1.0001p-8 : 0x1.000002p-24;
  for (std::int64_t i = 0; i < kCount; ++i) {
    const PhiloxWords words = philox4x32(philox_counter(static_cast<std::uint64_t>(i / 4), 3), 5);
    const std::uint32_t* pair = words.at + i % 4 / 2 * 2;
    const long double radius = std::sqrt(-2.0L * std::log((pair[0] + 0.5L) * kUnit));
    const long double angle = 2.0L * std::numbers::pi_v<long double> * (pair[1] * kUnit);
    const auto expected =
        static_cast<double>(radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle)));
    ASSERT_LE(std::abs(result[static_cast<std::size_t>(i)] - expected),
              std::abs(expected) * half_unit + 1e-15)
        << i;
  }
}

// The same on every instruction set, which each have a run of these tests.
TEST_P(ElementwiseTest, NormalNumbersHaveTheSameBitsEverywhere) {
  if (!on_cpu()) GTEST_SKIP() << "a GPU's are compared with the CPU's";
  const Tensor x = zeros({1000003});
  fill_normal(x, 0.1f, 0.7f, 11, 12);
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a, by words
  for (const float value : values(x))
    hash = (hash ^ std::bit_cast<std::uint32_t>(value)) * 1099511628211u;
  EXPECT_EQ(hash, 3718493654915141070u);
}

TEST_P(ElementwiseTest, NormalNumbersAreAFunctionOfSeedStreamAndIndex) {
  const Values all = normal_numbers(zeros({1003}), 1, 2);
  const Tensor prefix = zeros({10});
  EXPECT_EQ(normal_numbers(prefix, 1, 2), Values(all.begin(), all.begin() + 10));
  const std::pair<std::uint64_t, std::uint64_t> others[] = {
      {2, 2}, {1, 3}, {1 + (std::uint64_t{1} << 32), 2}, {1, 2 + (std::uint64_t{1} << 32)}};
  for (const auto& [seed, stream] : others) {
    const Values other = normal_numbers(prefix, seed, stream);
    for (std::size_t i = 0; i < other.size(); ++i) EXPECT_NE(other[i], all[i]);
  }
}

TEST_P(ElementwiseTest, NormalNumbersAreThoseOfTheCpu) {
  constexpr std::int64_t kCount = 10007;
  const std::unique_ptr<Device> cpu = Device::create_cpu(1);
  const Buffer expected = cpu->allocate(DType::f32, {kCount}, MemoryCategory::activations);
  fill_normal(expected.tensor(), 0.5f, 3.0f, 77, 5);
  const Tensor x = poisoned_activations({kCount});
  fill_normal(x, 0.5f, 3.0f, 77, 5);
  const Values result = values(x);
  const Values held = as_held(Values(expected.tensor().f32(), expected.tensor().f32() + kCount));
  // Two units in the last place; where these straddle a half, bf16 rounds to the other side.
  const float unit = in_bf16() ? 0x1p-8f : 0x1p-22f;
  std::int64_t different = 0;
  for (std::size_t i = 0; i < held.size(); ++i) {
    ASSERT_LE(std::abs(result[i] - held[i]), std::abs(held[i]) * unit) << i;
    different += result[i] != held[i] ? 1 : 0;
  }
  EXPECT_LE(different, on_cpu() ? 0 : kCount / 100);
}

// Lag correlations: neighbours come from one Box-Muller pair or one counter.
TEST_P(ElementwiseTest, NeighbouringNormalNumbersAreUncorrelated) {
  if (!on_cpu()) GTEST_SKIP() << "a GPU's are compared with the CPU's";
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
