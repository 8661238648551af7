// Memory as planned against what the processes of a job then count; run with any number of them.
#include <gtest/gtest.h>
#include <numeric>

#include "app/job/mpi_session.h"
#include "app/plan/plan.h"
#include "app/plan/report.h"
#include "app/training/batch_tensors.h"
#include "app/training/step_engine.h"

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

StepEngineOptions engine_options(const TrainConfig& config, const RunLayout& layout) {
  StepEngineOptions options;
  options.model = config.model.llama;
  options.num_replicas = static_cast<int>(layout.num_replicas);
  options.num_stages = static_cast<int>(layout.num_stages);
  options.micro_batches = static_cast<int>(layout.micro_batches);
  options.micro_batch = config.parallel.micro_batch;
  options.sequence_length = config.data.sequence_length;
  options.recompute = config.model.recompute;
  options.schedule = config.parallel.schedule;
  options.optimizer = config.optimizer_options();
  return options;
}

Batch some_batch(const TrainConfig& config) {
  Batch batch;
  batch.resize(config.parallel.micro_batch, config.data.sequence_length);
  std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
  std::iota(batch.targets.begin(), batch.targets.end(), 1);
  return batch;
}

class PlanLayoutsTest : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(PlanLayoutsTest, DeviceMemoryIsAsPlanned) {
  Communicator communicator(mpi_session());
  const std::int64_t processes = communicator.size();
  if (processes % GetParam().pipeline != 0) GTEST_SKIP() << "needs another number of processes";
  const TrainConfig config = config_of(GetParam(), processes / GetParam().pipeline);
  const auto planning_device = Device::create_cpu(1);
  const std::vector<RankMemory> planned =
      plan_memory(*planning_device, config, communicator.size(), {});

  const auto device = Device::create_cpu(1);
  const RunLayout layout = resolve_layout(config, processes);
  StepEngine engine(communicator, *device, engine_options(config, layout));
  engine.stage().initialize(1);
  std::vector<BatchTensors> batches;
  for (std::int64_t i = 0; i < layout.micro_batches; ++i) {
    batches.emplace_back(*device, config.parallel.micro_batch, config.data.sequence_length);
    batches.back().upload(some_batch(config), false);
  }
  const auto source = [&](int, int index) { return batches[index].micro_batch(); };
  const std::int64_t tokens = config.parallel.global_batch * config.data.sequence_length;
  EXPECT_TRUE(engine.run(0, source, tokens, 1e-3, false).verdict.commit);

  const RankMemory& own = planned[static_cast<std::size_t>(communicator.rank())];
  EXPECT_EQ(own.slot, engine.slot());
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    EXPECT_EQ(own.device_bytes(category), device->memory().current(category)) << name_of(category);
  }
  std::int64_t sum = 0;
  for (const MemoryRow& row : memory_rows(own)) sum += row.is_part ? 0 : row.bytes;
  EXPECT_EQ(sum, own.total());
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

// Every process runs every test; one that fails anywhere makes mpirun's exit status non-zero.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  chaski::MpiRuntime& runtime = chaski::mpi_session();
  const int failed = RUN_ALL_TESTS();
  // A process that gave up a test early leaves the others waiting: end them.
  if (failed != 0) runtime.abort(1);
  runtime.finish(0);
  return 0;
}
