// What a training step asks of CUDA, on the execution model: its counts tell what results cannot.

#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"
#include "model/stage.h"
#include "optim/adamw.h"
#include "tests/cuda_model/control.h"
#include "tests/model/tiny_model.h"

namespace chaski {
namespace {

using cuda_model::Counts;

class StageSteps : public ::testing::Test {
 protected:
  StageSteps() : device_(Device::create_cuda(0)), config_(testing::tiny_config()) {
    StageOptions options;
    options.micro_batch = 2;
    options.sequence_length = 5;
    options.precision = Precision::bf16;
    stage_ = std::make_unique<Stage>(*device_, config_, stage_range(config_, 0, 1), options);
    stage_->initialize(1);
    optimizer_ = make_adamw(*device_, stage_->parameters(), {});
    tokens_ = integers(1);
    targets_ = integers(2);
  }

  Buffer integers(unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::int32_t> ids(10);
    for (std::int32_t& id : ids)
      id = static_cast<std::int32_t>(random() % static_cast<unsigned>(config_.vocab_size));
    Buffer buffer = device_->allocate(DType::i32, {2, 5}, MemoryCategory::activations);
    copy_from_host(ids.data(), buffer.tensor());
    return buffer;
  }

  MicroBatch batch() const { return {tokens_.tensor(), targets_.tensor(), {}}; }

  void train(float gradient_scale) {
    stage_->parameters().zero_gradients();
    stage_->forward(0, batch(), {}, gradient_scale);
    stage_->backward(0, batch(), {}, nullptr);
    OptimizerStep step{};
    step.updates = ++steps_;
    step.learning_rate = 1e-3;
    optimizer_->step(step);
    stage_->take_loss_totals();
  }

  template <typename Work>
  std::uint64_t graphs_of(const Work& work) {
    const std::uint64_t before = cuda_model::counts().graphs;
    work();
    device_->synchronize();
    return cuda_model::counts().graphs - before;
  }

  std::unique_ptr<Device> device_;
  LlamaConfig config_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<Optimizer> optimizer_;
  Buffer tokens_, targets_;
  std::int64_t steps_ = 0;
};

TEST_F(StageSteps, AreGraphsFromTheSecondTimeOn) {
  const auto whole = static_cast<std::uint64_t>(2 * config_.num_layers + 1);  // blocks and head
  EXPECT_EQ(graphs_of([&] { train(0.1f); }), 0u);
  EXPECT_EQ(graphs_of([&] { train(0.1f); }), whole);  // recorded, then launched
  EXPECT_EQ(graphs_of([&] { train(0.1f); }), whole);
  // What is scaled otherwise is another sequence of ops; the blocks' are the same.
  EXPECT_EQ(graphs_of([&] { train(0.2f); }), whole - 1);
  EXPECT_EQ(graphs_of([&] { train(0.2f); }), whole);
}

TEST_F(StageSteps, EvaluationHasGraphsOfItsOwn) {
  const auto whole = static_cast<std::uint64_t>(2 * config_.num_layers + 1);
  const auto evaluate = [&] { stage_->evaluate(batch(), {}); };
  for (int i = 0; i < 2; ++i) train(0.1f);
  EXPECT_EQ(graphs_of(evaluate), 0u);
  EXPECT_EQ(graphs_of(evaluate), static_cast<std::uint64_t>(config_.num_layers + 1));
  EXPECT_EQ(graphs_of([&] { train(0.1f); }), whole);
}

TEST_F(StageSteps, AllocateNothingAfterTheFirst) {
  train(0.1f);
  const std::uint64_t after_first = cuda_model::counts().allocations;
  EXPECT_GT(after_first, 0u);
  for (int i = 0; i < 3; ++i) train(0.1f);
  EXPECT_EQ(cuda_model::counts().allocations, after_first);
}

// Weights by name after two updates with gradients of their own, which are the same in all layouts.
std::map<std::string, std::vector<std::uint16_t>> updated_weights(int num_stages) {
  const LlamaConfig config = testing::tiny_config();
  StageOptions options;
  options.precision = Precision::bf16_pure;
  std::map<std::string, std::vector<std::uint16_t>> weights;
  for (int i = 0; i < num_stages; ++i) {
    const auto device = Device::create_cuda(0);
    Stage stage(*device, config, stage_range(config, i, num_stages), options);
    stage.initialize(1);
    const auto optimizer =
        make_adamw(*device, stage.parameters(), {.stochastic_rounding = true, .seed = 5});
    for (std::int64_t update = 1; update <= 2; ++update) {
      for (const Parameter& parameter : stage.parameters())
        fill_normal(parameter.gradient, 0.0f, 1.0f, static_cast<std::uint64_t>(update),
                    random_stream_of(parameter.name));
      optimizer->step({.updates = update, .learning_rate = 1e-3});
    }
    for (const Parameter& parameter : stage.parameters()) {
      std::vector<std::uint16_t>& bits = weights[parameter.name];
      bits.resize(static_cast<std::size_t>(parameter.value.num_elements()));
      copy_to_host(parameter.value, bits.data());
    }
  }
  return weights;
}

TEST(StochasticRounding, DoesNotDependOnTheLayout) {
  EXPECT_EQ(updated_weights(3), updated_weights(1));
}

}  // namespace
}  // namespace chaski
