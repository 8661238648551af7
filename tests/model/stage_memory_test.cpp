// The memory of a stage as counted by a dry run of it, and what it then takes.

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <string>

#include "model/stage.h"
#include "tests/model/tiny_model.h"

namespace chaski {
namespace {

using testing::TinyBatch;

// A stage of a small model, with sizes that fill no cache line.
struct StageCase {
  const char* name;
  bool tied = false;
  std::int64_t num_kv_heads = 4;
  std::int64_t stage = 0;
  std::int64_t num_stages = 1;
  std::int64_t rows = 3;
  std::int64_t sequence_length = 70;
  std::int64_t in_flight = 1;
  Recompute recompute = Recompute::elementwise;
  bool training = true;
  std::int64_t vocab_size = 301;
  std::int64_t intermediate_size = 173;
  std::int64_t hidden_size = 60;
  std::optional<MocConfig> moc = std::nullopt;
  std::optional<MocIndex> moc_index = std::nullopt;
};

void PrintTo(const StageCase& tested, std::ostream* out) {
  *out << tested.name;
}

LlamaConfig config_of(const StageCase& tested) {
  LlamaConfig config;
  config.hidden_size = tested.hidden_size;
  config.intermediate_size = tested.intermediate_size;
  config.num_layers = 5;
  config.num_heads = 4;
  config.num_kv_heads = tested.num_kv_heads;
  config.head_dim = 14;
  config.vocab_size = tested.vocab_size;
  config.max_position_embeddings = 1100;
  config.tie_embeddings = tested.tied;
  config.moc = tested.moc;
  config.resolve();
  return config;
}

// One step of all stashes, and a validation pass, on a stage by itself.
void run_step(Stage& stage, const MicroBatch& batch, const Tensor& rows, const StageCase& tested) {
  if (tested.training) {
    for (std::int64_t stash = 0; stash < tested.in_flight; ++stash) {
      stage.forward(stash, batch, rows, 1.0f);
    }
    for (std::int64_t stash = 0; stash < tested.in_flight; ++stash) {
      stage.backward(stash, batch, rows, nullptr);
    }
  }
  stage.evaluate(batch, rows);
}

// Makes the stage, which is charged to `device`, and runs it on operands that are not.
void run_stage(Device& device, const StageCase& tested, const StageRange& range,
               const StageOptions& options) {
  Stage stage(device, config_of(tested), range, options);
  stage.initialize(1);
  const std::int64_t tokens = tested.rows * tested.sequence_length;
  const auto beside = device.is_counting() ? Device::create_counting(device)
                                           : Device::create_cpu(device.num_threads());
  const Buffer rows = beside->allocate(DType::f32, {tokens, stage.config().hidden_size},
                                       MemoryCategory::communication);
  if (device.is_counting()) {
    const Buffer ids = beside->allocate(DType::i32, {tested.rows, tested.sequence_length},
                                        MemoryCategory::activations);
    run_step(stage, {ids.tensor(), ids.tensor(), {}}, rows.tensor(), tested);
  } else {
    const TinyBatch data(*beside, stage.config(), tested.rows, tested.sequence_length);
    run_step(stage, data.batch(), rows.tensor(), tested);
  }
}

std::map<std::string, std::int64_t> peaks_of(Device& device) {
  std::map<std::string, std::int64_t> peaks;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    if (category != MemoryCategory::workspace)
      peaks[name_of(category)] = device.memory().peak(category);
  }
  for (const WorkspacePhase& phase : device.workspace().phases()) peaks[phase.name] = phase.bytes;
  return peaks;
}

class StageMemoryTest : public ::testing::TestWithParam<StageCase> {};

// What a dry run counts is what the device then counts, to the byte.
TEST_P(StageMemoryTest, IsWhatTheStageTakes) {
  const StageCase& tested = GetParam();
  const StageRange range = stage_range(config_of(tested), tested.stage, tested.num_stages);
  StageOptions options;
  options.micro_batch = tested.rows;
  options.sequence_length = tested.sequence_length;
  options.recompute = tested.recompute;
  options.micro_batches_in_flight = tested.in_flight;
  options.training = tested.training;
  options.moc_index = tested.moc_index;
  for (const int threads : {1, 2}) {
    const auto device = Device::create_cpu(threads);
    run_stage(*device, tested, range, options);
    const auto counting = Device::create_counting(Backend::cpu, threads);
    run_stage(*counting, tested, range, options);
    EXPECT_EQ(peaks_of(*counting), peaks_of(*device)) << threads << " threads";
    // The workspace is made as large as counted; so much of it was needed.
    EXPECT_EQ(device->memory().peak(MemoryCategory::workspace),
              std::max(device->workspace().largest_used(), std::int64_t{1} << 20));
    EXPECT_EQ(counting->workspace().largest_used(), device->workspace().largest_used());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, StageMemoryTest,
    ::testing::Values(
        StageCase{.name = "whole"}, StageCase{.name = "tied", .tied = true},
        StageCase{.name = "grouped_queries", .num_kv_heads = 2},
        StageCase{.name = "recompute", .recompute = Recompute::block},
        StageCase{.name = "recompute_in_flight",
                  .num_kv_heads = 1,
                  .in_flight = 3,
                  .recompute = Recompute::block},
        StageCase{.name = "first_stage", .num_stages = 3, .in_flight = 3},
        StageCase{.name = "middle_stage", .stage = 1, .num_stages = 3, .in_flight = 2},
        StageCase{.name = "last_stage", .stage = 2, .num_stages = 3, .in_flight = 1},
        StageCase{.name = "last_stage_in_flight", .stage = 1, .num_stages = 2, .in_flight = 2},
        StageCase{.name = "middle_stage_recompute",
                  .stage = 1,
                  .num_stages = 3,
                  .in_flight = 2,
                  .recompute = Recompute::block},
        StageCase{.name = "evaluation", .training = false},
        StageCase{.name = "one_token", .rows = 1, .sequence_length = 1},
        StageCase{.name = "keeps_all", .recompute = Recompute::none},
        StageCase{.name = "moc", .moc = MocConfig{}},
        StageCase{.name = "moc_keeps_all",
                  .recompute = Recompute::none,
                  .moc = MocConfig{9},
                  .moc_index = MocIndex::bitmap},
        StageCase{.name = "moc_of_eight",
                  .in_flight = 2,
                  .moc = MocConfig{0, MocPattern::two_of_eight},
                  .moc_index = MocIndex::uint16},
        StageCase{.name = "moc_recompute", .recompute = Recompute::block, .moc = MocConfig{}},
        StageCase{.name = "moc_evaluation", .training = false, .moc = MocConfig{}},
        StageCase{.name = "moc_tiles",
                  .rows = 5,
                  .sequence_length = 250,
                  .vocab_size = 31,
                  .moc = MocConfig{}},
        StageCase{.name = "wide_tiles",
                  .rows = 5,
                  .sequence_length = 250,
                  .vocab_size = 31,
                  .intermediate_size = 802},
        // The largest phase is the head's, in several chunks, the last one smaller; a block's
        // forward pass; a backward pass.
        StageCase{
            .name = "large_vocabulary", .rows = 5, .sequence_length = 250, .vocab_size = 3001},
        StageCase{.name = "wide_feed_forward",
                  .rows = 4,
                  .sequence_length = 150,
                  .vocab_size = 31,
                  .intermediate_size = 2002},
        StageCase{.name = "long_sequence",
                  .rows = 1,
                  .sequence_length = 1100,
                  .vocab_size = 31,
                  .intermediate_size = 8},
        StageCase{.name = "wide_stream_recompute",
                  .num_stages = 2,
                  .rows = 4,
                  .sequence_length = 100,
                  .recompute = Recompute::block,
                  .vocab_size = 31,
                  .intermediate_size = 64,
                  .hidden_size = 900}),
    [](const ::testing::TestParamInfo<StageCase>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace chaski
