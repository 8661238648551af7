#define CHASKI_ISA_NAMESPACE vector_math_test
#include "kernels/elementwise/vector_math.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>

namespace chaski::vector_math_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double ulps(float actual, double expected) {
  const double spacing =
      std::max(std::ldexp(1.0, std::ilogb(expected) - 23), std::ldexp(1.0, -149));
  return std::abs(actual - expected) / spacing;
}

// Every 997th float from -105 to 88.7, of all magnitudes.
template <typename Check>
void for_many_floats(float largest, Check check) {
  for (std::uint64_t bits = 0; bits <= 0xffffffffu; bits += 997) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (x >= -103.0f && x <= largest) check(x);
  }
}

TEST(VectorMathTest, ExpIsWithinTwoUlps) {
  double worst = 0.0;
  for_many_floats(88.7f, [&](float x) {
    worst = std::max(worst, ulps(exp_of(x), std::exp(static_cast<double>(x))));
  });
  EXPECT_LT(worst, 2.0);
}

TEST(VectorMathTest, ExpOfNonpositiveIsWithinTwoUlpsOrZero) {
  double worst = 0.0;
  for_many_floats(0.0f, [&](float x) {
    const float value = exp_nonpositive(x);
    if (x < -87.0f) {
      EXPECT_EQ(value, 0.0f);
    } else {
      worst = std::max(worst, ulps(value, std::exp(static_cast<double>(x))));
    }
  });
  EXPECT_LT(worst, 2.0);
  EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
}

TEST(VectorMathTest, SpecialValues) {
  EXPECT_EQ(exp_of(-kInfinity), 0.0f);
  EXPECT_EQ(exp_of(-1e30f), 0.0f);
  EXPECT_EQ(exp_of(kInfinity), kInfinity);
  EXPECT_EQ(exp_of(1e30f), kInfinity);
  EXPECT_EQ(exp_nonpositive(-kInfinity), 0.0f);
  EXPECT_EQ(sigmoid_of(kInfinity), 1.0f);
  EXPECT_EQ(sigmoid_of(-kInfinity), 0.0f);
  EXPECT_EQ(sigmoid_of(0.0f), 0.5f);
  for (const std::uint32_t payload : {0x7fc00000u, 0xffc00000u, 0x7fffffffu, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(payload);
    EXPECT_TRUE(std::isnan(exp_of(nan)));
    EXPECT_TRUE(std::isnan(exp_nonpositive(nan)));
    EXPECT_TRUE(std::isnan(sigmoid_of(nan)));
  }
  EXPECT_TRUE(std::isnan(exp_of(kNan)));
}

TEST(VectorMathTest, SigmoidIsWithinThreeUlps) {
  double worst = 0.0;
  for_many_floats(80.0f, [&](float x) {
    if (x < -80.0f) return;
    worst = std::max(worst, ulps(sigmoid_of(x), 1.0 / (1.0 + std::exp(-static_cast<double>(x)))));
  });
  EXPECT_LT(worst, 3.0);
}

}  // namespace
}  // namespace chaski::vector_math_test
