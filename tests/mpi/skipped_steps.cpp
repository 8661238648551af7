// Steps that are not committed are no updates; run with any number of processes.
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <new>
#include <numeric>

#include "app/job/mpi_session.h"
#include "app/step/batch_tensors.h"
#include "app/step/step_runner.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

constexpr std::int64_t kRows = 2;
constexpr std::int64_t kLength = 7;

HostedModelOptions small_model() {
  HostedModelOptions options;
  LlamaConfig& model = options.model;
  model.hidden_size = 16;
  model.intermediate_size = 24;
  model.num_layers = 1;
  model.num_heads = 2;
  model.vocab_size = 40;
  model.resolve();
  options.micro_batch = kRows;
  options.sequence_length = kLength;
  return options;
}

class SkippedSteps : public ::testing::Test {
 protected:
  SkippedSteps()
      : membership_(mpi_session()),
        device_(Device::create_cpu(1)),
        model_(*device_, small_model()),
        batch_(*device_, kRows, kLength) {
    model_.adopt(membership_);
    model_.initialize(1);
    Batch batch;
    batch.resize(kRows, kLength);
    std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
    std::iota(batch.targets.begin(), batch.targets.end(), 1);
    batch_.upload(batch, false);
  }

  ParameterSet& parameters() { return model_.stages().front()->model->parameters(); }

  // One step with these numbers.
  bool commits(std::int64_t step, std::int64_t updates) {
    StepRunner runner(membership_, model_, 1.0);
    const StepInput input{.step = step,
                          .updates = updates,
                          .targets = kRows * kLength * mpi_session().size(),
                          .learning_rate = 1e-2};
    const auto source = [this](int, int) { return batch_.micro_batch(); };
    return runner.run(input, source).verdict.commit;
  }

  Membership membership_;
  std::unique_ptr<Device> device_;
  HostedModel model_;
  BatchTensors batch_;
};

// The first update is corrected for its bias as the first, in whichever step it comes: from
// moments of zero, each element moves by the learning rate, whatever its gradient.
TEST_F(SkippedSteps, DoNotCountAsUpdates) {
  fill(parameters()[0].value, std::numeric_limits<float>::infinity());
  EXPECT_FALSE(commits(0, 0));
  model_.initialize(1);
  EXPECT_TRUE(commits(1, 0));
  const Parameter& norm = parameters().at("model.norm.weight");  // begins as 1, does not decay
  for (std::int64_t i = 0; i < norm.value.num_elements(); ++i)
    EXPECT_NEAR(std::abs(norm.value.f32()[i] - 1.0f), 1e-2, 1e-4);
}

// The search for what is not finite may end by an error of its own.
TEST_F(SkippedSteps, ASearchThatFailsLeavesTheModelUsable) {
  {
    StepRunner runner(membership_, model_, 1.0);
    const auto no_memory = [](int, int) -> MicroBatch { throw std::bad_alloc(); };
    EXPECT_THROW(runner.locate_nonfinite(no_memory, 1), std::bad_alloc);
  }
  // Gradients are reduced while the backward pass runs, as before.
  for (const auto& stage : model_.stages()) EXPECT_EQ(stage->listener.target, stage->reducer.get());
  EXPECT_TRUE(commits(0, 0));
}

}  // namespace
}  // namespace chaski
