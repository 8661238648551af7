// The gradients of a whole stage against differences of its own loss: independent of any other
// implementation, and of what the golden configs happen to hold.

#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <random>

#include "kernels/loss/cross_entropy.h"
#include "model/stage.h"
#include "tests/parity/golden.h"

namespace chaski {
namespace {

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kSequenceLength = 11;
// Of the gradient's norm; what rounding of the fp32 losses and the width of the step leave is below
// 1e-4.
constexpr double kTolerance = 5e-4;
constexpr double kStep = 0.01;

LlamaConfig tiny_config(bool tied) {
  LlamaConfig config;
  config.hidden_size = 12;
  config.intermediate_size = 19;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.vocab_size = 29;
  config.max_position_embeddings = 32;
  config.tie_embeddings = tied;
  config.initializer_range = 0.25;
  config.resolve();
  return config;
}

GoldenBatch random_batch(std::mt19937& random) {
  std::uniform_int_distribution<std::int32_t> token(0, 28);
  GoldenBatch batch{kRows, kSequenceLength, {}, {}, {}};
  for (std::int64_t i = 0; i < kRows * kSequenceLength; ++i) {
    batch.tokens.push_back(token(random));
    batch.targets.push_back(i % 7 == 3 ? kIgnoredTarget : token(random));
    // The second row has three documents.
    const std::int64_t position = i % kSequenceLength;
    batch.positions.push_back(
        static_cast<std::int32_t>(i < kSequenceLength ? position : position % 4));
  }
  return batch;
}

std::vector<float> unit_vector(std::vector<float> values) {
  const double length = norm(values);
  for (float& value : values) value = static_cast<float>(value / length);
  return values;
}

std::vector<float> random_direction(std::size_t size, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return unit_vector(values);
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// Derivative of `loss` along `direction` at the tensor's value: central differences of two widths,
// extrapolated (error of fourth order).
double derivative(const Tensor& tensor, const std::vector<float>& direction,
                  const std::function<double()>& loss) {
  const std::vector<float> start = to_vector(tensor);
  const auto loss_at = [&](double step) {
    for (std::size_t i = 0; i < start.size(); ++i) {
      tensor.f32()[i] = static_cast<float>(start[i] + step * direction[i]);
    }
    return loss();
  };
  const double narrow = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
  const double wide = (loss_at(2 * kStep) - loss_at(-2 * kStep)) / (4 * kStep);
  std::copy(start.begin(), start.end(), tensor.f32());
  return (4 * narrow - wide) / 3;
}

void expect_gradient(const std::string& name, const Tensor& tensor,
                     const std::vector<float>& gradient, const std::function<double()>& loss,
                     std::mt19937& random) {
  const double length = norm(gradient);
  ASSERT_GT(length, 1e-3) << name;
  // Steepest: the gradient's length. Random: that nothing is missing beside it.
  EXPECT_NEAR(derivative(tensor, unit_vector(gradient), loss), length, kTolerance * length) << name;
  for (int i = 0; i < 2; ++i) {
    const std::vector<float> direction = random_direction(gradient.size(), random);
    EXPECT_NEAR(derivative(tensor, direction, loss), dot(direction, gradient), kTolerance * length)
        << name;
  }
}

class FiniteDifference : public testing::TestWithParam<std::tuple<bool, Recompute>> {};

TEST_P(FiniteDifference, EveryParameterOfTheModel) {
  const auto [tied, recompute] = GetParam();
  std::mt19937 random(3);
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = tiny_config(tied);
  Stage stage(*device, config, stage_range(config, 0, 1),
              {.micro_batch = kRows, .sequence_length = kSequenceLength, .recompute = recompute});
  stage.initialize(11);
  const GoldenBatch batch = random_batch(random);
  const DeviceBatch on_device(*device, batch, 0, kRows);
  const double count = static_cast<double>(batch.num_targets());
  stage.forward(0, on_device.micro_batch(), {}, static_cast<float>(1.0 / count));
  stage.backward(0, on_device.micro_batch(), {}, nullptr);
  stage.take_loss_totals();  // of the forward pass
  const auto loss = [&] {
    stage.evaluate(on_device.micro_batch(), {});
    return stage.take_loss_totals().sum / count;
  };
  for (const Parameter& parameter : stage.parameters()) {
    expect_gradient(parameter.name, parameter.value, to_vector(parameter.gradient), loss, random);
  }
}

INSTANTIATE_TEST_SUITE_P(Stage, FiniteDifference,
                         testing::Combine(testing::Bool(), testing::Values(Recompute::elementwise,
                                                                           Recompute::block)));

// What a stage hands to the one before it.
TEST(FiniteDifferenceInput, LastStage) {
  std::mt19937 random(5);
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = tiny_config(false);
  Stage stage(*device, config, stage_range(config, 1, 2),
              {.micro_batch = kRows, .sequence_length = kSequenceLength});
  stage.initialize(11);
  const GoldenBatch batch = random_batch(random);
  const DeviceBatch on_device(*device, batch, 0, kRows);
  const Buffer input = device->allocate(DType::f32, {kRows * kSequenceLength, config.hidden_size},
                                        MemoryCategory::activations);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < input.tensor().num_elements(); ++i) {
    input.tensor().f32()[i] = normal(random);
  }
  const double count = static_cast<double>(batch.num_targets());
  stage.forward(0, on_device.micro_batch(), input.tensor(), static_cast<float>(1.0 / count));
  const Tensor gradient = stage.backward(0, on_device.micro_batch(), {}, nullptr);
  stage.take_loss_totals();  // of the forward pass
  const auto loss = [&] {
    stage.evaluate(on_device.micro_batch(), input.tensor());
    return stage.take_loss_totals().sum / count;
  };
  expect_gradient("input", input.tensor(), to_vector(gradient), loss, random);
}

}  // namespace
}  // namespace chaski
