// Gradients of two layers with Mixture-of-Channels against central differences of a loss in double
// that shares nothing with the product: every element of every parameter.

#include <cmath>
#include <gtest/gtest.h>
#include <random>

#include "kernels/moc/products.h"
#include "model/stage.h"
#include "tests/parity/golden.h"
#include "tests/parity/llama_reference.h"

namespace chaski {
namespace {

constexpr std::int64_t kSequenceLength = 5;
constexpr double kStep = 1e-5;
// No gate may be nearer to the border of a selection: fp32 would not see the same channels.
constexpr double kSmallestMargin = 1e-3;

LlamaConfig tiny_config(const std::optional<MocConfig>& moc, std::int64_t channels) {
  LlamaConfig config;
  config.hidden_size = 8;
  config.intermediate_size = channels;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 4;
  config.vocab_size = 17;
  config.max_position_embeddings = 16;
  config.initializer_range = 0.3;
  config.moc = moc;
  config.resolve();
  return config;
}

GoldenBatch random_batch(std::int64_t rows, unsigned seed) {
  std::mt19937 random(seed);
  GoldenBatch batch{rows, kSequenceLength, {}, {}, {}};
  for (std::int64_t i = 0; i < rows * kSequenceLength; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>(random() % 17));
    batch.targets.push_back(i % 7 == 3 ? kIgnoredTarget : static_cast<std::int32_t>(random() % 17));
  }
  return batch;
}

struct Way {
  const char* name;
  std::optional<MocConfig> moc;
  Recompute recompute;
  MocIndex index;
  std::int64_t rows = 2;
  std::int64_t channels = 21;
  bool skips = false;  // computes with the kept channels alone
};

void PrintTo(const Way& way, std::ostream* out) {
  *out << way.name;
}

class MocFiniteDifference : public testing::TestWithParam<Way> {};

// How the reference's tokens used the channels is what the stage counted.
void expect_channel_use(Stage& stage, const LlamaReference& reference) {
  const auto use = stage.take_channel_use();
  ASSERT_EQ(use.size(), reference.masks.size());
  for (std::size_t layer = 0; layer < use.size(); ++layer) {
    const std::size_t channels = use[layer].counts.size();
    std::vector<std::uint32_t> expected(channels, 0);
    for (std::size_t i = 0; i < reference.masks[layer].size(); ++i)
      expected[i % channels] += reference.masks[layer][i];
    EXPECT_EQ(use[layer].counts, expected) << "layer " << layer;
  }
}

TEST_P(MocFiniteDifference, EveryElementOfEveryParameter) {
  const LlamaConfig config = tiny_config(GetParam().moc, GetParam().channels);
  const auto device = Device::create_cpu(1);
  if (config.moc) {
    EXPECT_EQ(moc_products_pay(*device, moc_shape(config, GetParam().index), config.hidden_size,
                               GetParam().rows * kSequenceLength),
              GetParam().skips);
  }
  Stage stage(*device, config, stage_range(config, 0, 1),
              {.micro_batch = GetParam().rows,
               .sequence_length = kSequenceLength,
               .recompute = GetParam().recompute,
               .moc_index = GetParam().index});
  LlamaReference reference(config);
  GoldenBatch batch;
  double loss = 0.0;
  unsigned seed = 0;
  do {
    ASSERT_LT(++seed, 200u);
    stage.initialize(seed);
    batch = random_batch(GetParam().rows, seed);
    for (const Parameter& parameter : stage.parameters())
      reference.weights[parameter.name] = test::widen(to_vector(parameter.value));
    loss = reference.loss(batch);
  } while (reference.margin < kSmallestMargin);
  const std::vector<test::Mask> masks = reference.masks;

  const DeviceBatch on_device(*device, batch, 0, batch.rows);
  const double count = static_cast<double>(batch.num_targets());
  stage.forward(0, on_device.micro_batch(), {}, static_cast<float>(1.0 / count));
  EXPECT_NEAR(stage.take_loss_totals().sum / count, loss, 1e-6 * loss);
  if (config.moc) expect_channel_use(stage, reference);
  stage.backward(0, on_device.micro_batch(), {}, nullptr);
  for (const Parameter& parameter : stage.parameters()) {
    test::Reference& values = reference.weights.at(parameter.name);
    test::Reference expected(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double start = values[i];
      values[i] = start + kStep;
      const double above = reference.loss(batch);
      ASSERT_EQ(reference.masks, masks) << "a step crossed the border of a selection";
      values[i] = start - kStep;
      const double below = reference.loss(batch);
      ASSERT_EQ(reference.masks, masks) << "a step crossed the border of a selection";
      values[i] = start;
      expected[i] = (above - below) / (2 * kStep);
    }
    test::expect_close(to_vector(parameter.gradient), expected, 1e-5, parameter.name.c_str());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Stage, MocFiniteDifference,
    testing::Values(
        Way{"Dense", std::nullopt, Recompute::none, MocIndex::uint16},
        Way{"TopK", MocConfig{6}, Recompute::none, MocIndex::uint16},
        Way{"TopKElementwise", MocConfig{6}, Recompute::elementwise, MocIndex::bitmap},
        Way{"TopKBlock", MocConfig{15}, Recompute::block, MocIndex::uint16},
        Way{"TwoOfEight", MocConfig{0, MocPattern::two_of_eight}, Recompute::elementwise,
            MocIndex::uint16},
        // So many tokens that products skip channels.
        Way{"TopKSkipping", MocConfig{2}, Recompute::none, MocIndex::bitmap, 7, 64, true},
        Way{"TopKSkippingBlock", MocConfig{1}, Recompute::block, MocIndex::uint16, 7, 33, true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace chaski
