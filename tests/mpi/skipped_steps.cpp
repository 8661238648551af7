// Steps that are not committed are no updates; run with any number of processes.
#include <gtest/gtest.h>
#include <limits>
#include <numeric>

#include "app/job/mpi_session.h"
#include "app/training/batch_tensors.h"
#include "app/training/step_engine.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

class SkippedSteps : public ::testing::Test {
 protected:
  SkippedSteps() : device_(Device::create_cpu(1)), batch_(*device_, kRows, kLength) {
    Batch batch;
    batch.resize(kRows, kLength);
    std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
    std::iota(batch.targets.begin(), batch.targets.end(), 1);
    batch_.upload(batch, false);
  }

  StepEngineOptions options() {
    StepEngineOptions options;
    LlamaConfig& model = options.model;
    model.hidden_size = 16;
    model.intermediate_size = 24;
    model.num_layers = 1;
    model.num_heads = 2;
    model.vocab_size = 40;
    model.resolve();
    options.num_replicas = communicator_.size();
    options.micro_batch = kRows;
    options.sequence_length = kLength;
    return options;
  }

  bool commits(StepEngine& engine, std::int64_t step) {
    const auto source = [this](int, int) { return batch_.micro_batch(); };
    const std::int64_t targets = kRows * kLength * communicator_.size();
    return engine.run(step, source, targets, 1e-2, false).verdict.commit;
  }

  static std::vector<float> weights_of(StepEngine& engine) {
    std::vector<float> all;
    for (const Parameter& parameter : engine.stage().parameters())
      all.insert(all.end(), parameter.value.f32(),
                 parameter.value.f32() + parameter.value.num_elements());
    return all;
  }

  static constexpr std::int64_t kRows = 2;
  static constexpr std::int64_t kLength = 7;
  Communicator communicator_{mpi_session()};
  std::unique_ptr<Device> device_;
  BatchTensors batch_;
};

// The first update is corrected for its bias as the first, in whichever step it comes.
TEST_F(SkippedSteps, DoNotCountAsUpdates) {
  StepEngine straight(communicator_, *device_, options());
  straight.stage().initialize(1);
  EXPECT_TRUE(commits(straight, 0));

  StepEngine skipping(communicator_, *device_, options());
  skipping.stage().initialize(1);
  fill(skipping.stage().parameters()[0].value, std::numeric_limits<float>::infinity());
  EXPECT_FALSE(commits(skipping, 0));
  EXPECT_EQ(skipping.updates(), 0);
  skipping.stage().initialize(1);
  EXPECT_TRUE(commits(skipping, 1));
  EXPECT_EQ(skipping.updates(), 1);
  EXPECT_EQ(weights_of(skipping), weights_of(straight));
}

}  // namespace
}  // namespace chaski
