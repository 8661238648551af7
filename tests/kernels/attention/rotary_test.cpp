#include "kernels/attention/rotary.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;
using Positions = std::vector<std::int32_t>;

constexpr double kTheta = 10000.0;

// Each pair (i, i + d/2) of the query and key heads is a complex number turned by an angle.
Reference reference_rotation(const AttentionShape& shape, const Values& qkv,
                             const Positions& positions, double direction) {
  Reference result = test::widen(qkv);
  const std::int64_t half = shape.head_dim / 2;
  for (std::int64_t t = 0; t < shape.num_tokens(); ++t) {
    for (std::int64_t h = 0; h < shape.num_heads + shape.num_kv_heads; ++h) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = direction * positions[static_cast<std::size_t>(t)] /
                             std::pow(kTheta, 2.0 * i / shape.head_dim);
        const std::size_t low = t * shape.qkv_size() + h * shape.head_dim + i;
        const double x = qkv[low];
        const double y = qkv[low + half];
        result[low] = x * std::cos(angle) - y * std::sin(angle);
        result[low + half] = y * std::cos(angle) + x * std::sin(angle);
      }
    }
  }
  return result;
}

class RotaryTest : public test::OpTest {
 protected:
  Tensor table(std::int64_t max_positions, std::int64_t head_dim) {
    const Tensor result = zeros({max_positions, head_dim});
    rotary_table(kTheta, result);
    return result;
  }
};

constexpr AttentionShape kShapes[] = {
    {1, 1, 1, 1, 2}, {2, 7, 3, 1, 6}, {2, 5, 3, 1, 16}, {1, 33, 4, 2, 64}, {2, 100, 2, 2, 80}};

TEST_P(RotaryTest, TableHoldsCosinesThenSines) {
  constexpr std::int64_t kHeadDim = 10;
  const Values filled = values(table(300, kHeadDim));
  for (std::int64_t p = 0; p < 300; ++p) {
    for (std::int64_t i = 0; i < kHeadDim / 2; ++i) {
      const double angle = p / std::pow(kTheta, 2.0 * i / kHeadDim);
      EXPECT_NEAR(filled[p * kHeadDim + i], std::cos(angle), 1e-7);
      EXPECT_NEAR(filled[p * kHeadDim + kHeadDim / 2 + i], std::sin(angle), 1e-7);
    }
  }
}

TEST_P(RotaryTest, TurnsQueriesAndKeysAndBackwardUndoesIt) {
  for (const AttentionShape& shape : kShapes) {
    const Values qkv = as_held(test::random_values(shape.num_tokens() * shape.qkv_size(), 1));
    const Tensor turned = activations({shape.num_tokens(), shape.qkv_size()}, qkv);
    const Tensor angles = table(shape.sequence_length, shape.head_dim);
    Positions positions;
    for (std::int64_t t = 0; t < shape.num_tokens(); ++t)
      positions.push_back(static_cast<std::int32_t>(t % shape.sequence_length));
    rotary_forward(shape, turned, Tensor(), 0, angles);
    test::expect_close(values(turned), reference_rotation(shape, qkv, positions, 1.0),
                       tolerance(5e-7), "qkv");
    const Tensor shifted = shifted_activations({shape.num_tokens(), shape.qkv_size()}, qkv);
    rotary_forward(shape, shifted, Tensor(), 0, angles);
    EXPECT_TRUE(test::same_bits(values(shifted), values(turned)));
    rotary_backward(shape, turned, Tensor(), angles);
    test::expect_close(values(turned), test::widen(qkv), tolerance(5e-7), "back");
  }
}

TEST_P(RotaryTest, TakesPositionsOfDocumentsAndOfDecoding) {
  const AttentionShape shape = {2, 5, 2, 1, 8};
  const Values qkv = as_held(test::random_values(shape.num_tokens() * shape.qkv_size(), 2));
  const Tensor angles = table(50, shape.head_dim);
  const Positions positions = {0, 1, 0, 1, 2, 7, 49, 0, 3, 3};
  const Tensor turned = activations({10, shape.qkv_size()}, qkv);
  rotary_forward(shape, turned, integers(positions), 0, angles);
  test::expect_close(values(turned), reference_rotation(shape, qkv, positions, 1.0),
                     tolerance(5e-7), "turned");
  const Tensor back = activations({10, shape.qkv_size()}, qkv);
  rotary_backward(shape, back, integers(positions), angles);
  test::expect_close(values(back), reference_rotation(shape, qkv, positions, -1.0), tolerance(5e-7),
                     "back");

  const Tensor later = activations({10, shape.qkv_size()}, qkv);
  rotary_forward(shape, later, Tensor(), 45, angles);
  const Positions shifted = {45, 46, 47, 48, 49, 45, 46, 47, 48, 49};
  test::expect_close(values(later), reference_rotation(shape, qkv, shifted, 1.0), tolerance(5e-7),
                     "later");
}

TEST_P(RotaryTest, SameBitsForAnyNumberOfThreads) {
  const AttentionShape shape = {2, on_cpu() ? 100 : 10, 4, 2, 64};
  const Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 3);
  expect_same_for_any_threads([&] {
    const Tensor turned = activations({shape.num_tokens(), shape.qkv_size()}, qkv);
    rotary_forward(shape, turned, Tensor(), 0, table(100, 64));
    return values(turned);
  });
}

TEST_P(RotaryTest, APositionOutsideTheTableIsNotANumberOnAGpu) {
  if (on_cpu()) GTEST_SKIP() << "the CPU throws";
  const AttentionShape shape = {1, 4, 1, 1, 16};
  const Tensor qkv = activations({4, 48}, Values(4 * 48, 1.0f));
  rotary_forward(shape, qkv, integers({0, 6, -1, 5}), 0, table(6, 16));
  const Values result = values(qkv);
  for (std::size_t i = 0; i < result.size(); ++i) {
    const bool turned = i % 48 < 32;  // queries and keys
    EXPECT_EQ(std::isnan(result[i]), turned && (i / 48 == 1 || i / 48 == 2)) << i;
  }
}

TEST_P(RotaryTest, RefusesPositionsOutsideTheTableAndOddHeads) {
  const AttentionShape shape = {1, 4, 1, 1, 6};
  const Tensor qkv = zeros({4, shape.qkv_size()});
  const Tensor angles = table(6, 6);
  EXPECT_THROW(rotary_forward(shape, qkv, Tensor(), 3, angles), std::invalid_argument);
  EXPECT_THROW(rotary_forward(shape, qkv, Tensor(), -1, angles), std::invalid_argument);
  EXPECT_THROW(table(4, 5), std::invalid_argument);
  if (!on_cpu()) return;
  EXPECT_THROW(rotary_forward(shape, qkv, integers({0, 6, 0, 0}), 0, angles),
               std::invalid_argument);
  EXPECT_THROW(rotary_backward(shape, qkv, integers({0, -1, 0, 0}), angles), std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(RotaryTest);

}  // namespace
}  // namespace chaski
