#include "optim/gradient_norm.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

TEST(GradientNormTest, SumsOverAllGradientsAndFindsTheBadOne) {
  const auto device = Device::create_cpu(2);
  ParameterSet parameters(*device);
  parameters.add("a", ParameterKind::ffn, 0, {3, 5});
  parameters.add("b", ParameterKind::ffn, 0, {2, 2});
  parameters.add("frozen", ParameterKind::norm, 0, {4});
  parameters.allocate();
  parameters.allocate_gradients([](const Parameter& p) { return p.name != "frozen"; });
  fill(parameters.at("a").gradient, 2.0f);
  fill(parameters.at("b").gradient, -3.0f);
  EXPECT_DOUBLE_EQ(gradient_sum_of_squares(parameters), 15 * 4.0 + 4 * 9.0);
  // 19 elements: the middle of a (7) is in the first half, that of b (17) in the second.
  EXPECT_DOUBLE_EQ(gradient_sum_of_squares(parameters, 0, 2), 15 * 4.0);
  EXPECT_DOUBLE_EQ(gradient_sum_of_squares(parameters, 1, 2), 4 * 9.0);
  EXPECT_DOUBLE_EQ(gradient_sum_of_squares(parameters, 0, 7), 0.0);
  EXPECT_EQ(find_nonfinite_gradient(parameters).count, 0);
  parameters.at("b").gradient.f32()[3] = std::numeric_limits<float>::quiet_NaN();
  parameters.at("b").gradient.f32()[1] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(find_nonfinite_gradient(parameters).name, "b");
  EXPECT_EQ(find_nonfinite_gradient(parameters).count, 2);
  EXPECT_FALSE(std::isfinite(gradient_sum_of_squares(parameters)));
}

TEST(GradientNormTest, ClippingOnlyEverShrinks) {
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_factor(1.0, 1.0), 1.0);
  EXPECT_NEAR(clip_factor(4.0, 1.0), 0.25, 1e-6);
  EXPECT_EQ(clip_factor(4.0, 0.0), 1.0) << "0 switches it off";
}

}  // namespace
}  // namespace chaski
