// Memory as planned against what the processes of a job then count; run with any number of them.
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "app/job/mpi_session.h"
#include "app/plan/plan.h"
#include "app/plan/report.h"
#include "app/step/batch_tensors.h"
#include "app/step/step_runner.h"
#include "tests/parallel/membership/roster_text.h"

namespace chaski {
namespace {

struct LayoutCase {
  const char* name;
  std::int64_t pipeline = 1;
  ScheduleKind schedule = ScheduleKind::one_f_one_b;
  Recompute recompute = Recompute::elementwise;
  std::int64_t micro_batches = 3;
};

void PrintTo(const LayoutCase& tested, std::ostream* out) {
  *out << tested.name;
}

TrainConfig config_of(const LayoutCase& tested, std::int64_t num_replicas) {
  TrainConfig config;
  LlamaConfig& model = config.model.llama;
  model.hidden_size = 60;
  model.intermediate_size = 173;
  model.num_layers = 5;
  model.num_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 14;
  model.vocab_size = 301;
  model.resolve();
  config.data.sequence_length = 33;
  config.parallel.micro_batch = 3;
  config.parallel.pipeline = tested.pipeline;
  config.parallel.global_batch = 3 * tested.micro_batches * num_replicas;
  config.parallel.schedule = tested.schedule;
  config.model.recompute = tested.recompute;
  config.schedule.steps = 7;
  return config;
}

Batch some_batch(const TrainConfig& config) {
  Batch batch;
  batch.resize(config.parallel.micro_batch, config.data.sequence_length);
  std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
  std::iota(batch.targets.begin(), batch.targets.end(), 1);
  return batch;
}

// Runs a step as this membership and compares what the device counts with the plan.
void expect_memory_as_planned(const TrainConfig& config, const Membership& membership) {
  const Roster& roster = membership.roster();
  const auto planning_device = Device::create_counting(Backend::cpu, 1);
  const std::vector<RankMemory> planned = plan_memory(*planning_device, config, roster, {});
  const auto device = Device::create_cpu(1);
  const std::int64_t micro_batches =
      roster.num_micro_batches(config.parallel.global_batch, config.parallel.micro_batch);
  HostedModel model(*device, hosted_model_options(config, micro_batches));
  model.adopt(membership);
  model.initialize(1);
  std::map<int, std::vector<BatchTensors>> batches;  // by replica
  for (const Slot slot : roster.slots_of(membership.process())) {
    std::vector<BatchTensors>& of_replica = batches[slot.replica];
    while (std::ssize(of_replica) < micro_batches) {
      of_replica.emplace_back(*device, config.parallel.micro_batch, config.data.sequence_length);
      of_replica.back().upload(some_batch(config), false);
    }
  }
  const auto source = [&](int replica, int index) {
    return batches.at(replica)[static_cast<std::size_t>(index)].micro_batch();
  };
  const std::int64_t tokens = config.parallel.global_batch * config.data.sequence_length;
  StepRunner runner(membership, model, 1.0);
  EXPECT_TRUE(runner.run({.targets = tokens, .learning_rate = 1e-3}, source).verdict.commit);

  const RankMemory& own = planned[static_cast<std::size_t>(membership.communicator().rank())];
  EXPECT_EQ(own.slots, roster.slots_of(membership.process()));
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    EXPECT_EQ(own.device_bytes(category), device->memory().current(category)) << name_of(category);
  }
  std::int64_t sum = 0;
  for (const MemoryRow& row : memory_rows(own)) sum += row.is_part ? 0 : row.bytes;
  EXPECT_EQ(sum, own.total());
}

class PlanLayoutsTest : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(PlanLayoutsTest, DeviceMemoryIsAsPlanned) {
  const int processes = mpi_session().size();
  if (processes % GetParam().pipeline != 0) GTEST_SKIP() << "needs another number of processes";
  const TrainConfig config = config_of(GetParam(), processes / GetParam().pipeline);
  expect_memory_as_planned(config, Membership(mpi_session(), config));
}

// Processes that host both replicas of a stage, both stages of a replica, or a stage of each.
TEST(PlanOfSeveralSlots, DeviceMemoryIsAsPlanned) {
  const int processes = mpi_session().size();
  if (processes > 2) GTEST_SKIP() << "needs one or two processes";
  const TrainConfig config = config_of({.name = "two_by_two", .pipeline = 2}, 2);
  const Roster all = Roster::initial(2, 2, 4);
  for (Roster roster :
       {all.with_takeover(1, 0).with_takeover(3, 2), all.with_takeover(2, 0).with_takeover(3, 1),
        all.with_takeover(3, 0).with_takeover(2, 1)}) {
    if (processes == 1) roster = roster.with_takeover(roster.live_processes().back(), 0);
    SCOPED_TRACE(text_of(roster));
    expect_memory_as_planned(
        config, Membership(std::make_unique<Communicator>(mpi_session()), std::move(roster)));
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, PlanLayoutsTest,
                         ::testing::Values(LayoutCase{.name = "replicas"},
                                           LayoutCase{.name = "two_stages", .pipeline = 2},
                                           LayoutCase{.name = "two_stages_gpipe_recompute",
                                                      .pipeline = 2,
                                                      .schedule = ScheduleKind::gpipe,
                                                      .recompute = Recompute::block},
                                           LayoutCase{.name = "three_stages", .pipeline = 3},
                                           LayoutCase{.name = "four_stages_one_micro_batch",
                                                      .pipeline = 4,
                                                      .micro_batches = 1}),
                         [](const ::testing::TestParamInfo<LayoutCase>& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace chaski
