#include "app/plan/dry_run.h"

#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <string>

#include "app/plan/step_gemms.h"
#include "app/step/batch_tensors.h"
#include "app/step/membership.h"
#include "app/step/step_runner.h"
#include "parallel/membership/message_tags.h"
#include "tests/parallel/membership/roster_text.h"

namespace chaski {
namespace {

TrainConfig dry_config() {
  TrainConfig config;
  config.model.llama = llama_preset("llama-9m");
  config.model.llama.vocab_size = 500;
  config.data.sequence_length = 130;
  config.parallel.micro_batch = 9;  // of 1170 tokens: two tiles of 592 and 578, and three chunks
  config.parallel.global_batch = 18;
  config.device.tokens_per_pass = 0;
  return config;
}

double flops_of(const std::vector<OpCount>& ops, const char* name) {
  double flops = 0.0;
  for (const OpCount& op : ops) flops += std::strcmp(op.op, name) == 0 ? op.flops : 0.0;
  return flops;
}

double bytes_of(const std::vector<OpCount>& ops, const char* name) {
  double bytes = 0.0;
  for (const OpCount& op : ops) bytes += std::strcmp(op.op, name) == 0 ? op.bytes : 0.0;
  return bytes;
}

// Of each kind of product all that a step has, whatever the tiles and chunks.
TEST(DryRun, ProductsAreThoseOfAStep) {
  for (const Backend backend : {Backend::cpu, Backend::cuda}) {
    TrainConfig config = dry_config();
    config.device.backend = backend == Backend::cpu ? BackendChoice::cpu : BackendChoice::cuda;
    const auto model = Device::create_counting(backend, 1);
    const DryRun dry = dry_run(*model, config, initial_roster(config, 1), 0);
    double forward = 0.0, input = 0.0, weight = 0.0;
    for (const StepGemm& gemm : step_gemms(config.model.llama, 9 * 130, backend)) {
      double& sum = gemm.pass == GemmPass::forward          ? forward
                    : gemm.pass == GemmPass::input_gradient ? input
                                                            : weight;
      sum += 2 * gemm.count * gemm.flops();  // of two micro-batches
    }
    EXPECT_NEAR(flops_of(dry.ops, "gemm_forward"), forward, 1e-12 * forward);
    EXPECT_NEAR(flops_of(dry.ops, "gemm_input_gradient"), input, 1e-12 * input);
    EXPECT_NEAR(flops_of(dry.ops, "gemm_weight_gradient"), weight, 1e-12 * weight);
    // Passes by themselves, and what there is once a step.
    EXPECT_DOUBLE_EQ(2 * (dry.forward.flops() + dry.backward.flops()), dry.step.flops());
    const double update =
        dry.step.traffic_bytes - 2 * (dry.forward.traffic_bytes + dry.backward.traffic_bytes);
    const auto bytes = [&](double a_parameter) {
      return a_parameter * static_cast<double>(dry.num_parameters);
    };
    // Gradients zeroed, read for their norm and read again; weights, two moments and, in mixed
    // precision, the rounded weights.
    EXPECT_NEAR(update, bytes(backend == Backend::cpu ? 36 : 38), 0.001 * update);
  }
}

// The messages of both ends: micro-batches of activations to the next stage, as many gradients
// back.
TEST(DryRun, MessagesAreOfTheStagesTensors) {
  TrainConfig config = dry_config();
  config.parallel.pipeline = 2;
  config.parallel.data = 2;
  config.parallel.global_batch = 54;
  const auto model = Device::create_counting(Backend::cpu, 1);
  const Roster roster = initial_roster(config, 4);
  const std::int64_t tensors = 3 * 4 * 9 * 130 * config.model.llama.hidden_size;
  for (int rank = 0; rank < 4; ++rank) {
    std::int64_t pipeline = 0;
    for (const Communicator::Sent& sent : dry_run(*model, config, roster, rank).sent) {
      if (!is_pipeline_tag(sent.tag)) continue;
      EXPECT_EQ(sent.to, (rank + 2) % 4);
      pipeline += sent.bytes;
    }
    EXPECT_EQ(pipeline, tensors);
  }
}

// Every stage updates its weights, whoever has the loss: together they move what one process does.
TEST(DryRun, StagesTogetherDoWhatOneProcessDoes) {
  TrainConfig config = dry_config();
  config.device.tokens_per_pass = 0;
  const auto model = Device::create_counting(Backend::cpu, 1);
  const DryRun whole = dry_run(*model, config, initial_roster(config, 1), 0);
  config.parallel.pipeline = 2;
  double updates = 0.0;
  for (int rank = 0; rank < 2; ++rank) {
    const DryRun dry = dry_run(*model, config, initial_roster(config, 2), rank);
    updates += bytes_of(dry.ops, "adamw_step");
    EXPECT_GT(bytes_of(dry.ops, "adamw_step"), 0.0) << rank;
  }
  EXPECT_DOUBLE_EQ(updates, bytes_of(whole.ops, "adamw_step"));
}

// Whatever a process does for its replica alone, the others hold the same.
TEST(DryRun, ReplicasHoldTheSame) {
  TrainConfig config = dry_config();
  config.parallel.data = 2;
  const auto model = Device::create_counting(Backend::cpu, 2);
  const DryRun first = dry_run(*model, config, initial_roster(config, 2), 0);
  const DryRun second = dry_run(*model, config, initial_roster(config, 2), 1);
  EXPECT_EQ(first.memory.current_bytes, second.memory.current_bytes);
  EXPECT_EQ(first.step.flops(), second.step.flops());
}

std::map<std::string, std::int64_t> memory_of(Device& device) {
  std::map<std::string, std::int64_t> memory;
  for (const MemoryPart& part : device.memory_parts()) memory[part.purpose] = part.bytes;
  for (const WorkspacePhase& phase : device.workspace().phases()) memory[phase.name] = phase.bytes;
  return memory;
}

// What the only process that is left of a roster holds after a step and an evaluation, on zeros.
std::map<std::string, std::int64_t> memory_after_step(Device& device, const Roster& roster) {
  TrainConfig config = dry_config();
  config.model.llama.num_layers = 3;
  const Membership membership(std::make_unique<Communicator>(0, 1), roster);
  HostedModel model(device, hosted_model_options(config, 3));
  model.adopt(membership);
  model.initialize(1);
  const BatchTensors batch(device, config.parallel.micro_batch, config.data.sequence_length);
  const auto source = [&](int, int) { return batch.micro_batch(); };
  StepRunner runner(membership, model, 1.0);
  EXPECT_TRUE(runner.run({.targets = 1000}, source).verdict.commit);
  model.executor().evaluate(source, 1);
  EXPECT_TRUE(membership.communicator().sent().empty()) << "nothing leaves the process";
  return memory_of(device);
}

// As with interleaved stages and after a takeover: counted, a process takes what it takes.
TEST(DryRun, OfAProcessThatHostsSeveralSlots) {
  const Roster two_stages = Roster::initial(1, 2, 2).with_takeover(1, 0);
  const Roster two_slots = Roster::initial(2, 1, 2).with_takeover(1, 0);
  const Roster all =
      Roster::initial(2, 2, 4).with_takeover(1, 0).with_takeover(2, 0).with_takeover(3, 0);
  for (const Roster& roster : {two_stages, two_slots, all}) {
    SCOPED_TRACE(text_of(roster));
    const auto device = Device::create_cpu(2);
    const auto counting = Device::create_counting(Backend::cpu, 2);
    EXPECT_EQ(memory_after_step(*counting, roster), memory_after_step(*device, roster));
  }
}

}  // namespace
}  // namespace chaski
