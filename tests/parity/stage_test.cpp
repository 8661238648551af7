// A stage's logits, losses and gradients against transformers' LLaMA.

#include "model/stage.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

#include "tests/parity/golden.h"

namespace chaski {
namespace {

// Of a tensor's norm, and of the loss. Correct kernels stay below 5e-6.
constexpr double kTensorTolerance = 2e-5;
constexpr double kLossTolerance = 1e-5;
// Where the exact gradient is zero: share of the norm of all gradients.
constexpr double kZeroTolerance = 1e-6;

// How one and the same batch may be run.
struct Way {
  const char* name;
  Recompute recompute;
  int num_threads;
  std::int64_t rows;  // of a micro-batch; 0: all
  bool all_forward_first;
};
constexpr Way kWays[] = {
    {"Whole", Recompute::elementwise, 1, 0, false},
    {"TwoThreads", Recompute::elementwise, 2, 0, false},
    {"KeepAll", Recompute::none, 1, 0, false},
    {"Recompute", Recompute::block, 2, 0, false},
    {"Accumulated", Recompute::elementwise, 2, 1, false},
    {"AccumulatedUnevenly", Recompute::block, 1, 2, false},
    {"InFlight", Recompute::elementwise, 2, 1, true},
    {"InFlightRecompute", Recompute::block, 2, 1, true},
};

std::vector<DeviceBatch> micro_batches(Device& device, const GoldenBatch& batch,
                                       std::int64_t rows) {
  std::vector<DeviceBatch> result;
  for (std::int64_t begin = 0; begin < batch.rows; begin += rows) {
    result.emplace_back(device, batch, begin, std::min(rows, batch.rows - begin));
  }
  return result;
}

double norm_of_all(const std::vector<Golden::NamedValues>& gradients) {
  double sum = 0.0;
  for (const auto& gradient : gradients) sum += std::pow(norm(gradient.values), 2);
  return std::sqrt(sum);
}

void expect_gradients(const Golden& golden, const ParameterSet& parameters) {
  const double total = norm_of_all(golden.gradients);
  for (const Parameter& parameter : parameters) {
    const std::vector<float> actual = to_vector(parameter.gradient);
    const std::vector<float>& expected = find(golden.gradients, parameter.name);
    if (norm(expected) == 0.0) {
      EXPECT_LE(norm(actual), kZeroTolerance * total) << parameter.name;
    } else {
      EXPECT_LE(relative_error(actual, expected), kTensorTolerance) << parameter.name;
    }
  }
}

class StageParity : public testing::TestWithParam<std::tuple<std::string, Way>> {};

TEST_P(StageParity, LossAndGradients) {
  const Golden golden(std::get<0>(GetParam()));
  const Way way = std::get<1>(GetParam());
  const auto device = parity_device(way.num_threads);
  const std::int64_t rows = way.rows == 0 ? golden.batch.rows : way.rows;
  const std::vector<DeviceBatch> batches = micro_batches(*device, golden.batch, rows);
  const auto num_batches = static_cast<std::int64_t>(batches.size());
  Stage stage(*device, golden.config, stage_range(golden.config, 0, 1),
              {.micro_batch = rows,
               .sequence_length = golden.batch.sequence_length,
               .recompute = way.recompute,
               .micro_batches_in_flight = way.all_forward_first ? num_batches : 1});
  ASSERT_EQ(stage.parameters().size(), static_cast<std::int64_t>(golden.weights.size()));
  load_weights(golden, stage.parameters());

  const float scale = 1.0f / static_cast<float>(golden.num_targets);
  double loss = 0.0;
  const auto forward = [&](std::int64_t i, std::int64_t stash) {
    stage.forward(stash, batches[i].micro_batch(), {}, scale);
    loss += stage.take_loss_totals().sum;
  };
  if (way.all_forward_first) {
    for (std::int64_t i = 0; i < num_batches; ++i) forward(i, i);
    for (std::int64_t i = 0; i < num_batches; ++i) {
      stage.backward(i, batches[i].micro_batch(), {}, nullptr);
    }
  } else {
    for (std::int64_t i = 0; i < num_batches; ++i) {
      forward(i, 0);
      stage.backward(0, batches[i].micro_batch(), {}, nullptr);
    }
  }
  ASSERT_EQ(golden.batch.num_targets(), golden.num_targets);
  EXPECT_NEAR(loss / golden.num_targets, golden.loss, kLossTolerance * golden.loss);
  expect_gradients(golden, stage.parameters());
}

INSTANTIATE_TEST_SUITE_P(Golden, StageParity,
                         testing::Combine(testing::ValuesIn(Golden::names()),
                                          testing::ValuesIn(kWays)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param).name;
                         });

class ModelParity : public testing::TestWithParam<std::string> {};

// Negative log likelihood of every token, from the golden logits, in double.
std::vector<float> token_losses(const Golden& golden) {
  const std::int64_t vocab_size = golden.config.vocab_size;
  std::vector<float> losses;
  for (std::size_t token = 0; token < golden.batch.targets.size(); ++token) {
    const float* row = golden.logits.data() + token * vocab_size;
    double sum = 0.0;
    for (std::int64_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(row[i]));
    const std::int32_t target = golden.batch.targets[token];
    losses.push_back(target < 0 ? 0.0f : static_cast<float>(std::log(sum) - row[target]));
  }
  return losses;
}

TEST_P(ModelParity, EvaluationGivesEveryTokensLoss) {
  const Golden golden(GetParam());
  const auto device = parity_device(2);
  for (const bool training : {false, true}) {
    Stage stage(*device, golden.config, stage_range(golden.config, 0, 1),
                {.micro_batch = golden.batch.rows,
                 .sequence_length = golden.batch.sequence_length,
                 .training = training});
    load_weights(golden, stage.parameters());
    const DeviceBatch batch(*device, golden.batch, 0, golden.batch.rows);
    stage.evaluate(batch.micro_batch(), {});
    EXPECT_NEAR(stage.take_loss_totals().sum / golden.num_targets, golden.loss,
                kLossTolerance * golden.loss);
    const std::vector<float> expected = token_losses(golden);
    const std::vector<float> actual = to_vector(stage.token_losses());
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 1e-4) << "token " << i;
    }
  }
}

// The final norm and the head in double from what the blocks put out.
std::vector<float> head_of(const Golden& golden, const std::vector<float>& hidden) {
  const std::int64_t size = golden.config.hidden_size;
  const std::int64_t vocab_size = golden.config.vocab_size;
  const std::vector<float>& norm_weight = find(golden.weights, "model.norm.weight");
  const std::vector<float>& head =
      find(golden.weights,
           golden.config.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  std::vector<float> logits;
  for (std::size_t begin = 0; begin < hidden.size(); begin += size) {
    double squares = 0.0;
    for (std::int64_t i = 0; i < size; ++i) squares += std::pow(hidden[begin + i], 2);
    const double scale = 1.0 / std::sqrt(squares / size + golden.config.rms_norm_eps);
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      double logit = 0.0;
      for (std::int64_t i = 0; i < size; ++i) {
        logit += scale * hidden[begin + i] * norm_weight[i] * head[v * size + i];
      }
      logits.push_back(static_cast<float>(logit));
    }
  }
  return logits;
}

StageRange without_head(const LlamaConfig& config) {
  return {
      .first_layer = 0, .num_layers = config.num_layers, .has_embedding = true, .has_head = false};
}

TEST_P(ModelParity, Logits) {
  const Golden golden(GetParam());
  LlamaConfig config = golden.config;
  config.tie_embeddings = false;  // a tied head cannot be left out
  const auto device = parity_device(2);
  Stage stage(*device, config, without_head(config),
              {.micro_batch = golden.batch.rows,
               .sequence_length = golden.batch.sequence_length,
               .training = false});
  load_weights(golden, stage.parameters());
  const DeviceBatch batch(*device, golden.batch, 0, golden.batch.rows);
  const Tensor hidden = stage.evaluate(batch.micro_batch(), {});
  const std::vector<float> actual = head_of(golden, to_vector(hidden));
  EXPECT_LE(relative_error(actual, golden.logits), kTensorTolerance);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], golden.logits[i], 1e-3) << "logit " << i;
  }
}

// More than one layer, and the head not tied to the embedding.
class PipelineParity : public testing::TestWithParam<std::string> {};

// A layer a stage, the tensors between them handed over as a transport would.
TEST_P(PipelineParity, StagesByThemselves) {
  const Golden golden(GetParam());
  const auto device = parity_device(2);
  const std::int64_t num_stages = golden.config.num_layers;
  for (const auto recompute : {Recompute::elementwise, Recompute::block}) {
    std::vector<std::unique_ptr<Stage>> stages;
    for (std::int64_t i = 0; i < num_stages; ++i) {
      stages.push_back(
          std::make_unique<Stage>(*device, golden.config, stage_range(golden.config, i, num_stages),
                                  StageOptions{.micro_batch = golden.batch.rows,
                                               .sequence_length = golden.batch.sequence_length,
                                               .recompute = recompute}));
      load_weights(golden, stages.back()->parameters());
    }
    const DeviceBatch batch(*device, golden.batch, 0, golden.batch.rows);
    Tensor passed;
    for (const auto& stage : stages) {
      passed = stage->forward(0, batch.micro_batch(), passed,
                              1.0f / static_cast<float>(golden.num_targets));
    }
    EXPECT_NEAR(stages.back()->take_loss_totals().sum / golden.num_targets, golden.loss,
                kLossTolerance * golden.loss);
    for (std::int64_t i = num_stages - 1; i >= 0; --i) {
      passed = stages[i]->backward(0, batch.micro_batch(), passed, nullptr);
    }
    for (const auto& stage : stages) expect_gradients(golden, stage->parameters());
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, ModelParity, testing::ValuesIn(Golden::names()),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Golden, PipelineParity,
                         testing::Values("mha_untied", "mqa_odd", "documents", "moc_topk"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace chaski
