// Whole models with Mixture-of-Channels: however a step is run, it is the same step.

#include <map>
#include <memory>
#include <numeric>

#include "model/decoder.h"
#include "model/stage.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Values;

constexpr std::int64_t kLength = 9;

LlamaConfig small_config(std::optional<MocConfig> moc = MocConfig{4}) {
  LlamaConfig config;
  config.hidden_size = 28;
  config.intermediate_size = 61;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.vocab_size = 31;
  config.max_position_embeddings = 16;
  config.initializer_range = 0.2;
  config.moc = moc;
  config.resolve();
  return config;
}

class MocStageTest : public test::OpTest {
 protected:
  // On the CPU enough tokens that products skip channels where few are kept. A model of a GPU takes
  // a thousand times as long as one.
  std::int64_t rows() const { return on_cpu() ? 4 : 1; }
  std::vector<Recompute> recomputations() const {
    if (!on_cpu()) return {Recompute::none, Recompute::elementwise};
    return {Recompute::none, Recompute::elementwise, Recompute::block};
  }
  std::vector<std::optional<MocConfig>> selections() const {
    if (!on_cpu()) return {MocConfig{4}};
    return {MocConfig{4}, MocConfig{29}, MocConfig{0, MocPattern::two_of_eight},
            MocConfig{9, MocPattern::topk, MocScore::silu_magnitude}};
  }

  StageOptions options(Recompute recompute = Recompute::none, std::int64_t in_flight = 1) const {
    StageOptions result;
    result.micro_batch = rows();
    result.sequence_length = kLength;
    result.recompute = recompute;
    result.moc_index = MocIndex::uint16;
    result.micro_batches_in_flight = in_flight;
    result.precision = in_bf16() ? Precision::bf16 : Precision::fp32;
    return result;
  }

  std::unique_ptr<Stage> make(const LlamaConfig& config, const StageOptions& options,
                              std::int64_t stage = 0, std::int64_t num_stages = 1) {
    auto result =
        std::make_unique<Stage>(device(), config, stage_range(config, stage, num_stages), options);
    result->initialize(7);
    return result;
  }

  MicroBatch batch(unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::int32_t> tokens, targets;
    for (std::int64_t i = 0; i < rows() * kLength; ++i) {
      tokens.push_back(static_cast<std::int32_t>(random() % 31));
      targets.push_back(i % 5 == 2 ? -1 : static_cast<std::int32_t>(random() % 31));
    }
    return {
        integers(tokens).view({rows(), kLength}), integers(targets).view({rows(), kLength}), {}};
  }

  using Gradients = std::map<std::string, Values>;
  Gradients gradients(const Stage& stage) {
    Gradients result;
    for (const Parameter& parameter : stage.parameters())
      if (parameter.gradient) result[parameter.name] = values(parameter.gradient);
    return result;
  }

  // Loss and gradients of one micro-batch.
  std::pair<double, Gradients> step(Stage& stage, const MicroBatch& batch) {
    stage.parameters().zero_gradients();
    stage.forward(0, batch, {}, 1.0f);
    stage.backward(0, batch, {}, nullptr);
    return {stage.take_loss_totals().sum, gradients(stage)};
  }
};

TEST_P(MocStageTest, WhatIsRecomputedHasTheSameBits) {
  const MicroBatch data = batch(1);
  auto kinds = selections();
  if (!in_bf16()) kinds.push_back(std::nullopt);
  for (const auto& moc : kinds) {
    const auto expected = step(*make(small_config(moc), options()), data);
    for (const Recompute recompute : recomputations()) {
      for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
        StageOptions way = options(recompute);
        way.moc_index = index;
        EXPECT_EQ(step(*make(small_config(moc), way), data), expected)
            << name_of(recompute) << " " << name_of(index);
      }
    }
  }
}

TEST_P(MocStageTest, AllChannelsAreTheDenseModel) {
  const MicroBatch data = batch(1);
  for (const Recompute recompute : recomputations()) {
    const auto dense = step(*make(small_config(std::nullopt), options(recompute)), data);
    const auto all = step(*make(small_config(MocConfig{61}), options(recompute)), data);
    EXPECT_EQ(all.first, dense.first);
    if (!in_bf16()) {
      EXPECT_EQ(all.second, dense.second) << name_of(recompute);
      continue;
    }
    for (const auto& [name, gradient] : dense.second)
      test::expect_close(all.second.at(name), test::widen(gradient), 3e-2, name.c_str());
  }
}

// Selecting channels is no small change, so that what is equal here is not so by chance.
TEST_P(MocStageTest, FewerChannelsAreAnotherModel) {
  const MicroBatch data = batch(1);
  const double dense = step(*make(small_config(std::nullopt), options()), data).first;
  const double moc = step(*make(small_config(), options()), data).first;
  EXPECT_GT(std::abs(dense - moc), 1e-3 * dense);
}

TEST_P(MocStageTest, StagesInARowEqualOneStage) {
  if (on_cpu()) use_threads(1);
  const MicroBatch data = batch(1);
  for (const Recompute recompute : recomputations()) {
    for (const auto& moc : selections()) {
      const LlamaConfig config = small_config(moc);
      const auto expected = step(*make(config, options(recompute)), data);
      for (const std::int64_t num_stages : {2, 3}) {
        std::vector<std::unique_ptr<Stage>> stages;
        Tensor passed;
        for (std::int64_t i = 0; i < num_stages; ++i) {
          stages.push_back(make(config, options(recompute), i, num_stages));
          passed = stages.back()->forward(0, data, passed, 1.0f);
        }
        EXPECT_EQ(stages.back()->take_loss_totals().sum, expected.first);
        Gradients all;
        for (std::int64_t i = num_stages; i-- > 0;) {
          passed = stages[i]->backward(0, data, passed, nullptr);
          all.merge(gradients(*stages[i]));
        }
        EXPECT_EQ(all, expected.second) << num_stages << " " << name_of(recompute);
      }
    }
  }
}

// Each stash has its own kept channels.
TEST_P(MocStageTest, MicroBatchesInFlightEqualOneAfterTheOther) {
  constexpr std::int64_t kInFlight = 3;
  std::vector<MicroBatch> data;
  for (unsigned i = 0; i < kInFlight; ++i) data.push_back(batch(10 + i));
  for (const auto& moc : selections()) {
    for (const Recompute recompute : recomputations()) {
      const auto alone = make(small_config(moc), options(recompute));
      for (const MicroBatch& micro_batch : data) {
        alone->forward(0, micro_batch, {}, 1.0f);
        alone->backward(0, micro_batch, {}, nullptr);
      }
      const auto together = make(small_config(moc), options(recompute, kInFlight));
      for (std::int64_t i = 0; i < kInFlight; ++i) together->forward(i, data[i], {}, 1.0f);
      for (std::int64_t i = 0; i < kInFlight; ++i) together->backward(i, data[i], {}, nullptr);
      EXPECT_EQ(together->take_loss_totals().sum, alone->take_loss_totals().sum);
      EXPECT_EQ(gradients(*together), gradients(*alone)) << name_of(recompute);
    }
  }
}

TEST_P(MocStageTest, FrozenParametersChangeNoOthersGradient) {
  const MicroBatch data = batch(1);
  for (const Recompute recompute : recomputations()) {
    for (const auto& moc : selections()) {
      const auto stage = make(small_config(moc), options(recompute));
      const auto expected = step(*stage, data).second;
      const std::vector<std::vector<const char*>> frozen = {{"gate_proj"},
                                                            {"up_proj"},
                                                            {"down_proj"},
                                                            {"post_attention"},
                                                            {"gate_proj", "up_proj"},
                                                            {"mlp"},
                                                            {"1.", "embed"}};
      for (const auto& parts : frozen) {
        const auto is_frozen = [&](const Parameter& parameter) {
          return std::any_of(parts.begin(), parts.end(), [&](const char* part) {
            return parameter.name.find(part) != std::string::npos;
          });
        };
        stage->parameters().allocate_gradients([&](const Parameter& p) { return !is_frozen(p); });
        const auto actual = step(*stage, data).second;
        EXPECT_LT(actual.size(), expected.size());
        for (const auto& [name, gradient] : actual)
          test::expect_close(gradient, test::widen(expected.at(name)), in_bf16() ? 1e-2 : 1e-6,
                             (name + " without " + parts.front()).c_str());
      }
    }
  }
}

TEST_P(MocStageTest, EvaluationIsTheForwardPassOfTraining) {
  const MicroBatch data = batch(1);
  for (const auto& moc : selections()) {
    for (const Recompute recompute : recomputations()) {
      const auto stage = make(small_config(moc), options(recompute));
      stage->forward(0, data, {}, 1.0f);
      const Values expected = values(stage->token_losses());
      stage->backward(0, data, {}, nullptr);
      stage->evaluate(data, {});
      EXPECT_EQ(values(stage->token_losses()), expected) << name_of(recompute);
    }
    StageOptions inference = options();
    inference.training = false;
    const auto alone = make(small_config(moc), inference);
    alone->evaluate(data, {});
    const auto stage = make(small_config(moc), options());
    stage->forward(0, data, {}, 1.0f);
    EXPECT_EQ(values(alone->token_losses()), values(stage->token_losses()));
  }
}

TEST_P(MocStageTest, DecodingGivesTheLossesOfEvaluation) {
  if (in_bf16()) GTEST_SKIP() << "a decoder is fp32 only";
  for (const auto& moc : selections()) {
    const LlamaConfig config = small_config(moc);
    const auto stage = make(config, options());
    const MicroBatch data = batch(4);
    stage->evaluate(data, {});
    const Values expected = values(stage->token_losses());
    std::vector<std::int32_t> tokens(rows() * kLength), targets(rows() * kLength);
    copy_to_host(data.tokens, tokens.data());
    copy_to_host(data.targets, targets.data());
    for (const int portion : {static_cast<int>(kLength), 1, 4}) {
      Decoder decoder(device(), *stage, kLength);
      Values actual;
      for (std::int64_t row = 0; row < rows(); ++row) {
        decoder.rewind(0);
        for (std::int64_t begin = 0; begin < kLength; begin += portion) {
          const std::int64_t count = std::min<std::int64_t>(portion, kLength - begin);
          const std::int64_t first = row * kLength + begin;
          const Values logits =
              values(decoder.feed({tokens.data() + first, static_cast<std::size_t>(count)}, true));
          for (std::int64_t i = 0; i < count; ++i) {
            double sum = 0.0;
            for (int v = 0; v < 31; ++v) sum += std::exp(double(logits[i * 31 + v]));
            const std::int32_t target = targets[first + i];
            actual.push_back(
                target < 0 ? 0.0f : static_cast<float>(std::log(sum) - logits[i * 31 + target]));
          }
        }
      }
      test::expect_close(actual, test::widen(expected), 1e-5, "losses");
    }
  }
}

// Ten steps of plain descent: losses, use of channels and weights.
TEST_P(MocStageTest, TheSameSeedGivesTheSameRun) {
  const auto descend = [&] {
    const auto stage = make(small_config(), options(Recompute::elementwise));
    Values history;
    for (unsigned i = 0; i < (on_cpu() ? 10u : 2u); ++i) {
      history.push_back(static_cast<float>(step(*stage, batch(i)).first));
      for (const ChannelUse& use : stage->take_channel_use())
        history.insert(history.end(), use.counts.begin(), use.counts.end());
      for (Parameter& parameter : stage->parameters()) {
        Values weights = values(parameter.value);
        const Values gradient = values(parameter.gradient);
        for (std::size_t j = 0; j < weights.size(); ++j) weights[j] -= 0.01f * gradient[j];
        copy_from_host(weights.data(), parameter.value);
        history.insert(history.end(), weights.begin(), weights.end());
      }
      stage->parameters().refresh_compute();
    }
    return history;
  };
  EXPECT_EQ(descend(), descend());
  expect_same_for_any_threads(descend);
}

TEST_P(MocStageTest, ChannelsAreCountedInTrainingAndOnlyOnce) {
  const auto stage = make(small_config(), options());
  const auto counted = [&] {
    std::vector<std::int64_t> sums;
    for (const ChannelUse& use : stage->take_channel_use()) {
      sums.push_back(std::accumulate(use.counts.begin(), use.counts.end(), std::int64_t{0}));
      EXPECT_LE(use.positive, sums.back());
    }
    return sums;
  };
  const std::int64_t kept = rows() * kLength * 4;
  step(*stage, batch(1));
  step(*stage, batch(2));
  EXPECT_EQ(counted(), (std::vector<std::int64_t>{2 * kept, 2 * kept, 2 * kept}));
  EXPECT_EQ(counted(), (std::vector<std::int64_t>{0, 0, 0}));
  stage->evaluate(batch(3), {});
  EXPECT_EQ(counted(), (std::vector<std::int64_t>{0, 0, 0}));
  const auto dense = make(small_config(std::nullopt), options());
  step(*dense, batch(1));
  EXPECT_TRUE(dense->take_channel_use().empty());
}

CHASKI_ON_ALL_DEVICES(MocStageTest);

}  // namespace
}  // namespace chaski
