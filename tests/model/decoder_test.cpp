#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <numeric>
#include <random>

#include "kernels/elementwise/elementwise.h"
#include "tests/model/tiny_model.h"

namespace chaski {
namespace {

using testing::tiny_config;
using testing::tiny_options;
using testing::TinyBatch;

LlamaConfig moc_config(std::int64_t keep, MocPattern pattern = MocPattern::topk) {
  LlamaConfig config = tiny_config();
  config.moc = MocConfig{};
  config.moc->keep = keep;
  config.moc->pattern = pattern;
  config.resolve();
  return config;
}

class DecoderOfAnyFfnTest : public ::testing::TestWithParam<LlamaConfig> {};

// Feeding tokens in any portions gives the losses that a whole forward pass gives, which with MoC
// computes all channels and masks them.
TEST_P(DecoderOfAnyFfnTest, AgreesWithTheForwardPass) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig& config = GetParam();
  Stage stage(*device, config, stage_range(config, 0, 1), tiny_options(1, 12));
  stage.initialize(5);
  const TinyBatch data(*device, config, 1, 12);
  const MicroBatch batch = data.batch();
  stage.evaluate(batch, {});
  const std::span<const std::int32_t> tokens(batch.tokens.i32(), 12);
  for (const std::vector<int>& portions :
       {std::vector<int>{12}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {5, 1, 6}}) {
    Decoder decoder(*device, stage, 12);
    int begin = 0;
    for (const int count : portions) {
      const Tensor logits = decoder.feed(tokens.subspan(begin, count), true);
      for (int i = 0; i < count; ++i) {
        const std::int32_t target = batch.targets.i32()[begin + i];
        if (target < 0) continue;
        const float* row = logits.f32() + i * config.vocab_size;
        double total = 0.0;
        for (std::int64_t j = 0; j < config.vocab_size; ++j) total += std::exp(double(row[j]));
        EXPECT_NEAR(std::log(total) - row[target], stage.token_losses().f32()[begin + i], 1e-4);
      }
      begin += count;
    }
    EXPECT_EQ(decoder.position(), 12);
    EXPECT_THROW(decoder.feed(tokens.subspan(0, 1)), std::invalid_argument);
  }
}

INSTANTIATE_TEST_SUITE_P(, DecoderOfAnyFfnTest,
                         ::testing::Values(tiny_config(), moc_config(4), moc_config(1),
                                           moc_config(17),
                                           moc_config(5, MocPattern::two_of_eight)));

// (f + 2K) · d · size for a token of a sequence; what several sequences share is read once.
TEST(MocDecoderTest, ReadsTheSelectedChannelsOnly) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = moc_config(4);
  Stage stage(*device, config, stage_range(config, 0, 1), {.training = false});
  stage.initialize(5);
  Decoder decoder(*device, stage, 12, 3);
  const std::vector<std::int32_t> same = {7, 7, 7};
  const std::vector<std::int32_t> different = {1, 9, 20};
  decoder.feed({same.data(), 1});
  EXPECT_EQ(decoder.ffn_bytes_read(), 3 * (17 + 2 * 4) * 12 * 4);
  decoder.rewind(0);
  decoder.feed_each(same);
  EXPECT_EQ(decoder.ffn_bytes_read(), 3 * (17 + 2 * 4) * 12 * 4);
  decoder.feed_each(different);
  EXPECT_GT(decoder.ffn_bytes_read(), 3 * (17 + 2 * 4) * 12 * 4);
  EXPECT_LE(decoder.ffn_bytes_read(), 3 * (17 + 2 * 12) * 12 * 4);
}

TEST(MocDecoderTest, ManyTokensReadAllChannels) {
  const auto device = Device::create_cpu(1);
  LlamaConfig config = moc_config(4);
  config.max_position_embeddings = 32;
  Stage stage(*device, config, stage_range(config, 0, 1), {.training = false});
  stage.initialize(5);
  Decoder decoder(*device, stage, 32);
  decoder.feed(std::vector<std::int32_t>(20, 3));
  EXPECT_EQ(decoder.ffn_bytes_read(), 3 * 3 * 17 * 12 * 4);
}

// A decoder that lives on sees the new weights, those of its transposed copies too.
TEST(MocDecoderTest, FollowsChangesOfTheWeights) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = moc_config(4);
  Stage stage(*device, config, stage_range(config, 0, 1), {.training = false});
  stage.initialize(5);
  const std::vector<std::int32_t> token = {11};
  const auto logits_of = [&](Decoder& decoder) {
    decoder.rewind(0);
    return testing::values_of(decoder.feed(token));
  };
  Decoder lasting(*device, stage, 8);
  const std::vector<float> before = logits_of(lasting);
  EXPECT_EQ(logits_of(lasting), before);
  for (Parameter& parameter : stage.parameters()) {
    if (parameter.name.find("down_proj") != std::string::npos)
      fill_normal(parameter.value, 0.0f, 0.5f, 1, 77);
  }
  stage.parameters().values_changed();
  Decoder fresh(*device, stage, 8);
  const std::vector<float> after = logits_of(lasting);
  EXPECT_NE(after, before);
  EXPECT_EQ(after, logits_of(fresh));
  stage.initialize(5);
  EXPECT_EQ(logits_of(lasting), before);
}

// Sequences that are decoded together stay apart, at positions of their own.
TEST_P(DecoderOfAnyFfnTest, SequencesDoNotMeet) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig& config = GetParam();
  Stage stage(*device, config, stage_range(config, 0, 1), {.training = false});
  stage.initialize(6);
  const std::vector<std::vector<std::int32_t>> texts = {
      {5, 1, 4, 8, 2}, {3, 3, 9}, {20, 7, 7, 1, 0, 12, 28}};
  Decoder together(*device, stage, 12, 3);
  std::vector<std::int32_t> last;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    together.feed(std::span(texts[i]).first(texts[i].size() - 1), false,
                  static_cast<std::int64_t>(i));
    last.push_back(texts[i].back());
  }
  const std::vector<float> logits = testing::values_of(together.feed_each(last));
  for (std::size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(together.position(static_cast<std::int64_t>(i)),
              static_cast<std::int64_t>(texts[i].size()));
    Decoder alone(*device, stage, 12);
    const std::vector<float> expected = testing::values_of(alone.feed(texts[i]));
    for (std::size_t j = 0; j < expected.size(); ++j)
      ASSERT_NEAR(logits[i * expected.size() + j], expected[j], 2e-5) << i << ", " << j;
  }
  EXPECT_THROW(together.feed_each(std::span(last).first(2)), std::invalid_argument);
  EXPECT_THROW(Decoder(*device, stage, 8, 0), std::invalid_argument);
}

TEST(DecoderTest, RewindsToAnEarlierPosition) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = tiny_config();
  Stage stage(*device, config, stage_range(config, 0, 1), {.training = false});
  stage.initialize(3);
  Decoder decoder(*device, stage, 8);
  const std::vector<std::int32_t> tokens = {5, 1, 4};
  const auto logits_after = [&](std::int32_t last) {
    const Tensor logits = decoder.feed({&last, 1});
    return std::vector<float>(logits.f32(), logits.f32() + logits.num_elements());
  };
  decoder.feed(tokens);
  const std::vector<float> first = logits_after(2);
  logits_after(7);
  decoder.rewind(3);
  EXPECT_EQ(decoder.position(), 3);
  EXPECT_EQ(logits_after(2), first);
  EXPECT_THROW(decoder.rewind(5), std::invalid_argument);
}

TEST(DecoderTest, CapacityIsChecked) {
  const auto device = Device::create_cpu(1);
  const LlamaConfig config = tiny_config();
  Stage stage(*device, config, stage_range(config, 0, 1), tiny_options(1, 4));
  EXPECT_THROW(Decoder(*device, stage, config.max_position_embeddings + 1), std::invalid_argument);
  EXPECT_THROW(Decoder(*device, stage, 0), std::invalid_argument);
}

const std::vector<float> kLogits = {0.0f, 2.0f, 1.0f, -1.0f};

std::map<std::int32_t, double> frequencies(const SamplingOptions& options) {
  std::map<std::int32_t, double> result;
  const int n = 20000;
  for (int i = 0; i < n; ++i) result[sample_token(kLogits, options, (i + 0.5) / n)] += 1.0 / n;
  return result;
}

TEST(SamplingTest, FollowsTheSoftmaxOfTheTemperature) {
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const auto seen = frequencies({.temperature = temperature});
    double total = 0.0;
    for (const float logit : kLogits) total += std::exp(logit / temperature);
    for (std::size_t i = 0; i < kLogits.size(); ++i) {
      EXPECT_NEAR(seen.at(static_cast<std::int32_t>(i)), std::exp(kLogits[i] / temperature) / total,
                  1e-3);
    }
  }
}

TEST(SamplingTest, TopKAndTopPCutTheTail) {
  const auto greedy = frequencies({.temperature = 0.0});
  ASSERT_EQ(greedy.size(), 1u);
  EXPECT_EQ(greedy.begin()->first, 1);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_k = 2}).size(), 2u);
  const auto one = frequencies({.temperature = 1.0, .top_k = 1});
  EXPECT_EQ(one.begin()->first, 1);
  // Probabilities 0.644, 0.237, 0.087, 0.032: the first two reach 0.7 together.
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.7}).size(), 2u);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 0.6}).size(), 1u);
  EXPECT_EQ(frequencies({.temperature = 1.0, .top_p = 1.0}).size(), 4u);
}

// Against a plain sort of all tokens, for a vocabulary as real ones and all kinds of cuts.
TEST(SamplingTest, CutsOfALargeVocabularyAreThoseOfASort) {
  constexpr std::size_t kVocab = 5000;
  std::mt19937 generator(7);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(generator);
  logits[17] = logits[18];  // equal ones are ranked by index
  std::vector<std::int32_t> order(kVocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  for (const SamplingOptions options :
       {SamplingOptions{.temperature = 0.7, .top_k = 40},
        SamplingOptions{.temperature = 1.0, .top_p = 0.9},
        SamplingOptions{.temperature = 1.3, .top_k = 300, .top_p = 0.5}}) {
    const auto weight = [&](std::size_t rank) {
      return std::exp((static_cast<double>(logits[order[rank]]) - logits[order[0]]) /
                      options.temperature);
    };
    const std::size_t kept = options.top_k > 0 ? static_cast<std::size_t>(options.top_k) : kVocab;
    double total = 0.0;
    for (std::size_t rank = 0; rank < kept; ++rank) total += weight(rank);
    std::size_t count = 0;
    double nucleus = 0.0;
    while (count < kept && nucleus < options.top_p * total) nucleus += weight(count++);
    // In the middle of each candidate's share, it is the one.
    double before = 0.0;
    for (std::size_t rank = 0; rank < count; before += weight(rank++)) {
      const double share = weight(rank) / nucleus;
      if (share < 1e-5) continue;
      ASSERT_EQ(sample_token(logits, options, before / nucleus + share / 2), order[rank]) << rank;
    }
  }
}

TEST(SamplingTest, OptionsOutOfRangeAreRefused) {
  EXPECT_THROW((SamplingOptions{.temperature = -1.0}.validate()), std::invalid_argument);
  EXPECT_THROW((SamplingOptions{.top_k = -1}.validate()), std::invalid_argument);
  EXPECT_THROW((SamplingOptions{.top_p = 0.0}.validate()), std::invalid_argument);
  EXPECT_THROW((SamplingOptions{.top_p = 1.5}.validate()), std::invalid_argument);
  SamplingOptions{}.validate();
}

}  // namespace
}  // namespace chaski
