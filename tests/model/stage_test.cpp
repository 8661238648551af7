#include "model/stage.h"

#include <cmath>
#include <gtest/gtest.h>

#include "kernels/elementwise/elementwise.h"
#include "tests/model/tiny_model.h"

namespace chaski {
namespace {

using testing::tiny_config;
using testing::tiny_options;
using testing::TinyBatch;
using testing::values_of;

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kLength = 9;

class StageTest : public ::testing::TestWithParam<bool> {
 protected:
  StageTest() : device_(Device::create_cpu(2)), config_(tiny_config(GetParam())) {}

  std::unique_ptr<Stage> whole_model(StageOptions options = tiny_options(kRows, kLength)) {
    auto stage = std::make_unique<Stage>(*device_, config_, stage_range(config_, 0, 1), options);
    stage->initialize(7);
    return stage;
  }
  static double loss(Stage& stage, const MicroBatch& batch) {
    stage.take_loss_totals();  // of what ran before
    stage.evaluate(batch, {});
    return stage.take_loss_totals().sum;
  }

  std::unique_ptr<Device> device_;
  LlamaConfig config_;
};

// The derivative of the loss along a direction, against central differences.
TEST_P(StageTest, GradientsMatchFiniteDifferences) {
  const auto stage = whole_model();
  const TinyBatch data(*device_, config_, kRows, kLength);
  for (const bool with_positions : {false, true}) {
    const MicroBatch batch = data.batch(with_positions);
    stage->parameters().zero_gradients();
    stage->forward(0, batch, {}, 0.25f);
    stage->backward(0, batch, {}, nullptr);
    for (Parameter& parameter : stage->parameters()) {
      const std::vector<float> gradient = values_of(parameter.gradient);
      double norm = 0.0;
      for (const float g : gradient) norm += static_cast<double>(g) * g;
      norm = std::sqrt(norm);
      ASSERT_GT(norm, 1e-4) << parameter.name;
      const std::vector<float> original = values_of(parameter.value);
      const double step = 2e-3;
      double losses[2];
      for (const int side : {0, 1}) {
        const double sign = side == 0 ? -1.0 : 1.0;
        for (std::size_t i = 0; i < original.size(); ++i) {
          parameter.value.f32()[i] =
              static_cast<float>(original[i] + sign * step * gradient[i] / norm);
        }
        losses[side] = 0.25 * loss(*stage, batch);
      }
      std::copy(original.begin(), original.end(), parameter.value.f32());
      const double derivative = (losses[1] - losses[0]) / (2 * step);
      EXPECT_NEAR(derivative / norm, 1.0, 5e-3) << parameter.name;
    }
  }
}

TEST_P(StageTest, LossOfUniformModelIsLogarithmOfVocabulary) {
  const auto stage = whole_model();
  for (Parameter& parameter : stage->parameters()) {
    if (parameter.kind != ParameterKind::norm) fill(parameter.value, 0.0f);
  }
  const TinyBatch data(*device_, config_, kRows, kLength);
  const MicroBatch batch = data.batch();
  std::int64_t targets = 0;
  for (std::int64_t i = 0; i < kRows * kLength; ++i) targets += batch.targets.i32()[i] >= 0;
  EXPECT_NEAR(loss(*stage, batch), targets * std::log(29.0), 1e-4);
}

TEST_P(StageTest, RecomputationGivesTheSameBits) {
  const TinyBatch data(*device_, config_, kRows, kLength);
  std::vector<std::vector<float>> gradients[2];
  for (const Recompute recompute : {Recompute::elementwise, Recompute::block}) {
    StageOptions options = tiny_options(kRows, kLength);
    options.recompute = recompute;
    const auto stage = whole_model(options);
    const MicroBatch batch = data.batch();
    stage->forward(0, batch, {}, 1.0f);
    stage->backward(0, batch, {}, nullptr);
    for (const Parameter& parameter : stage->parameters()) {
      gradients[recompute == Recompute::elementwise ? 0 : 1].push_back(
          values_of(parameter.gradient));
    }
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

TEST_P(StageTest, MicroBatchesAddUpToTheWholeBatch) {
  const TinyBatch data(*device_, config_, kRows, kLength);
  const auto whole = whole_model();
  whole->forward(0, data.batch(), {}, 1.0f);
  whole->backward(0, data.batch(), {}, nullptr);
  StageOptions options = tiny_options(1, kLength);
  options.micro_batches_in_flight = kRows;
  const auto parts = whole_model(options);
  double loss_sum = 0.0;
  for (std::int64_t m = 0; m < kRows; ++m) {
    parts->forward(m, data.rows(m, 1), {}, 1.0f);
    loss_sum += parts->take_loss_totals().sum;
  }
  for (std::int64_t m = 0; m < kRows; ++m) parts->backward(m, data.rows(m, 1), {}, nullptr);
  EXPECT_NEAR(loss_sum, whole->take_loss_totals().sum, 1e-4);
  for (std::int64_t i = 0; i < whole->parameters().size(); ++i) {
    const auto expected = values_of(whole->parameters()[i].gradient);
    const auto actual = values_of(parts->parameters()[i].gradient);
    for (std::size_t j = 0; j < expected.size(); ++j) {
      ASSERT_NEAR(actual[j], expected[j], 2e-5 * (1 + std::abs(expected[j])))
          << whole->parameters()[i].name;
    }
  }
}

TEST_P(StageTest, FrozenParametersHaveNoGradientAndChangeNothingElse) {
  const TinyBatch data(*device_, config_, kRows, kLength);
  const auto stage = whole_model();
  stage->forward(0, data.batch(), {}, 1.0f);
  stage->backward(0, data.batch(), {}, nullptr);
  std::vector<std::vector<float>> expected;
  for (const Parameter& parameter : stage->parameters()) {
    expected.push_back(values_of(parameter.gradient));
  }
  const auto trainable = [](const Parameter& parameter) {
    return parameter.layer != 1 || parameter.name.find("k_proj") != std::string::npos ||
           parameter.name.find("up_proj") != std::string::npos;
  };
  stage->parameters().allocate_gradients(trainable);
  stage->forward(0, data.batch(), {}, 1.0f);
  stage->backward(0, data.batch(), {}, nullptr);
  for (std::int64_t i = 0; i < stage->parameters().size(); ++i) {
    const Parameter& parameter = stage->parameters()[i];
    EXPECT_EQ(parameter.gradient.empty(), !trainable(parameter)) << parameter.name;
    if (parameter.gradient.empty()) continue;
    const auto actual = values_of(parameter.gradient);
    for (std::size_t j = 0; j < actual.size(); ++j) {
      ASSERT_NEAR(actual[j], expected[i][j], 2e-5 * (1 + std::abs(expected[i][j])))
          << parameter.name;
    }
  }
}

class Recorder : public GradientListener {
 public:
  void gradients_ready(std::int64_t first, std::int64_t count) override {
    for (std::int64_t i = first; i < first + count; ++i) announced.push_back(i);
  }
  std::vector<std::int64_t> announced;
};

TEST_P(StageTest, EveryGradientIsAnnouncedOnce) {
  const TinyBatch data(*device_, config_, kRows, kLength);
  const auto stage = whole_model();
  Recorder recorder;
  stage->forward(0, data.batch(), {}, 1.0f);
  stage->backward(0, data.batch(), {}, &recorder);
  std::sort(recorder.announced.begin(), recorder.announced.end());
  std::vector<std::int64_t> all(stage->parameters().size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int64_t>(i);
  EXPECT_EQ(recorder.announced, all);
}

TEST_P(StageTest, NothingIsAllocatedAfterTheFirstStep) {
  const TinyBatch data(*device_, config_, kRows, kLength);
  const auto stage = whole_model();
  const auto step = [&] {
    stage->parameters().zero_gradients();
    stage->forward(0, data.batch(), {}, 1.0f);
    stage->backward(0, data.batch(), {}, nullptr);
    stage->evaluate(data.rows(0, 1), {});
  };
  step();
  const std::int64_t allocations = device_->num_allocations();
  const std::int64_t bytes = device_->memory().total_current();
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(device_->num_allocations(), allocations);
  EXPECT_EQ(device_->memory().total_current(), bytes);
}

INSTANTIATE_TEST_SUITE_P(UntiedAndTied, StageTest, ::testing::Bool());

// A pipeline of stages does what one stage does, bit by bit.
TEST(StageSplitTest, StagesInARowEqualOneStage) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = tiny_config();
  const TinyBatch data(*device, config, kRows, kLength);
  const StageOptions options = tiny_options(kRows, kLength);
  Stage whole(*device, config, stage_range(config, 0, 1), options);
  whole.initialize(7);
  whole.forward(0, data.batch(), {}, 1.0f);
  whole.backward(0, data.batch(), {}, nullptr);

  const double loss_sum = whole.take_loss_totals().sum;

  for (const std::int64_t num_stages : {2, 3}) {
    std::vector<std::unique_ptr<Stage>> stages;
    Tensor hidden;
    for (std::int64_t s = 0; s < num_stages; ++s) {
      stages.push_back(
          std::make_unique<Stage>(*device, config, stage_range(config, s, num_stages), options));
      stages.back()->initialize(7);
      hidden = stages.back()->forward(0, data.batch(), hidden, 1.0f);
    }
    EXPECT_EQ(stages.back()->take_loss_totals().sum, loss_sum);
    Tensor gradient;
    for (std::int64_t s = num_stages; s-- > 0;) {
      gradient = stages[s]->backward(0, data.batch(), gradient, nullptr);
    }
    for (const auto& stage : stages) {
      for (const Parameter& parameter : stage->parameters()) {
        EXPECT_EQ(values_of(parameter.gradient),
                  values_of(whole.parameters().at(parameter.name).gradient))
            << parameter.name;
      }
    }
  }
}

TEST(StageSplitTest, LayersAreSplitEvenlyAndWhole) {
  LlamaConfig config = tiny_config();
  config.num_layers = 7;
  std::int64_t next = 0;
  for (std::int64_t s = 0; s < 3; ++s) {
    const StageRange range = stage_range(config, s, 3);
    EXPECT_EQ(range.first_layer, next);
    EXPECT_EQ(range.num_layers, s == 0 ? 3 : 2);
    EXPECT_EQ(range.has_embedding, s == 0);
    EXPECT_EQ(range.has_head, s == 2);
    next += range.num_layers;
  }
  EXPECT_EQ(next, 7);
  EXPECT_THROW(stage_range(config, 0, 8), std::invalid_argument);
}

}  // namespace
}  // namespace chaski
