// A decoder that lives while its model with Mixture-of-Channels is trained: after each step of the
// optimizer its logits, token by token, against those of a masked dense model in double.

#include <gtest/gtest.h>
#include <random>

#include "model/decoder.h"
#include "tests/parity/golden.h"
#include "tests/parity/llama_reference.h"

namespace chaski {
namespace {

constexpr std::int64_t kRows = 3;
constexpr std::int64_t kSequenceLength = 6;
constexpr int kSteps = 5;
// No gate may be nearer to the border of a selection: fp32 would not see the same channels.
constexpr double kSmallestMargin = 5e-5;

LlamaConfig tiny_config(const MocConfig& moc) {
  LlamaConfig config;
  config.hidden_size = 8;
  config.intermediate_size = 27;
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

GoldenBatch random_batch(unsigned seed) {
  std::mt19937 random(seed);
  GoldenBatch batch{kRows, kSequenceLength, {}, {}, {}};
  for (std::int64_t i = 0; i < kRows * kSequenceLength; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>(random() % 17));
    batch.targets.push_back(static_cast<std::int32_t>(random() % 17));
  }
  return batch;
}

class MocDecoding : public testing::TestWithParam<MocConfig> {
 protected:
  MocDecoding()
      : config_(tiny_config(GetParam())),
        device_(Device::create_cpu(1)),
        stage_(*device_, config_, stage_range(config_, 0, 1),
               {.micro_batch = kRows, .sequence_length = kSequenceLength}),
        optimizer_(make_adamw(*device_, stage_.parameters(), {})) {}

  void train(int step) {
    const GoldenBatch batch = random_batch(100 + static_cast<unsigned>(step));
    const DeviceBatch part(*device_, batch, 0, kRows);
    stage_.parameters().zero_gradients();
    stage_.forward(0, part.micro_batch(), {}, 1.0f / (kRows * kSequenceLength));
    stage_.backward(0, part.micro_batch(), {}, nullptr);
    optimizer_->step({.updates = step, .learning_rate = 0.05});
  }

  // Of masked products of all channels, with the weights of now.
  test::Reference expected_logits(const GoldenBatch& text) const {
    LlamaReference reference(config_);
    for (const Parameter& parameter : stage_.parameters())
      reference.weights[parameter.name] = test::widen(to_vector(parameter.value));
    const test::Reference logits = reference.logits(text);
    EXPECT_GT(reference.margin, kSmallestMargin) << "another seed is needed";
    return logits;
  }

  void expect_row(const Tensor& logits, std::int64_t row, const test::Reference& expected,
                  std::int64_t token) const {
    const auto begin = expected.begin() + token * config_.vocab_size;
    const std::vector<float> all = to_vector(logits);
    const auto mine = all.begin() + row * config_.vocab_size;
    for (std::int64_t i = 0; i < config_.vocab_size; ++i)
      ASSERT_NEAR(mine[i], begin[i], 2e-5) << "token " << token << ", logit " << i;
  }

  LlamaConfig config_;
  std::unique_ptr<Device> device_;
  Stage stage_;
  std::unique_ptr<Optimizer> optimizer_;
};

TEST_P(MocDecoding, FollowsTrainingStepByStep) {
  stage_.initialize(1);
  const GoldenBatch text = random_batch(7);
  Decoder alone(*device_, stage_, kSequenceLength);
  Decoder together(*device_, stage_, kSequenceLength, kRows);
  test::Reference before;
  for (int step = 0; step <= kSteps; ++step) {
    SCOPED_TRACE("after step " + std::to_string(step));
    if (step > 0) train(step);
    const test::Reference expected = expected_logits(text);
    EXPECT_NE(expected, before);
    before = expected;
    for (std::int64_t row = 0; row < kRows; ++row) together.rewind(0, row);
    alone.rewind(0);
    for (std::int64_t i = 0; i < kSequenceLength; ++i) {
      expect_row(alone.feed({&text.tokens[i], 1}), 0, expected, i);
      // Two layers' gates, and of the other projections what was selected.
      EXPECT_EQ(alone.ffn_bytes_read(), 2 * 4 * (27 + 2 * config_.moc->keep) * 8);
      std::vector<std::int32_t> next;
      for (std::int64_t row = 0; row < kRows; ++row)
        next.push_back(text.tokens[row * kSequenceLength + i]);
      const Tensor logits = together.feed_each(next);
      for (std::int64_t row = 0; row < kRows; ++row)
        expect_row(logits, row, expected, row * kSequenceLength + i);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Stage, MocDecoding,
                         testing::Values(MocConfig{5}, MocConfig{1},
                                         MocConfig{0, MocPattern::two_of_eight}),
                         [](const auto& info) {
                           return info.param.keep > 0 ? "Keep" + std::to_string(info.param.keep)
                                                      : std::string("TwoOfEight");
                         });

}  // namespace
}  // namespace chaski
