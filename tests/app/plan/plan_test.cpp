#include "app/plan/plan.h"

#include <cstdlib>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "app/plan/report.h"

namespace chaski {
namespace {

TrainConfig small_config() {
  TrainConfig config;
  config.model.llama = llama_preset("llama-9m");
  config.model.llama.vocab_size = 500;
  config.model.llama.max_position_embeddings = 128;
  config.data.sequence_length = 100;
  config.parallel.micro_batch = 2;
  config.parallel.global_batch = 8;
  config.schedule.steps = 50;
  return config;
}

PlanningMachine machine_with_rates() {
  PlanningMachine machine;
  machine.cores = 4;
  MachineRates rates;
  rates.threads = 4;
  rates.gemm_ceiling = 2e11;
  rates.gemm = 1e11;
  rates.channels = 6e10;
  rates.attention_forward = 5e10;
  rates.attention_backward = 4e10;
  rates.copy = 1e10;
  machine.rates = rates;
  return machine;
}

// The documented count of a step's operations (LlamaConfig::training_flops_per_token), which has 12
// operations a pair of query and key, where the scores computed again are 2 more, and 6 a weight of
// the norms.
TEST(Plan, OperationsOfAStepAreTheModels) {
  const TrainConfig config = small_config();
  const TrainingPlan plan = make_plan(config, 1, {});
  const Work work = plan.work();
  const double tokens = 800.0;
  const double attention = work.attention_forward_flops + work.attention_backward_flops;
  const LlamaConfig& model = config.model.llama;
  const auto norms = static_cast<double>(2 * model.hidden_size * model.num_layers);
  EXPECT_NEAR(work.gemm_flops + attention * 12.0 / 14.0,
              tokens * (model.training_flops_per_token(100) - 6.0 * norms), 1e-9 * work.gemm_flops);
  // However the work is spread.
  TrainConfig staged = config;
  staged.parallel.pipeline = 2;
  const Work in_stages = make_plan(staged, 4, {}).work();
  EXPECT_NEAR(in_stages.flops(), work.flops(), 1e-6 * work.flops());
}

TrainConfig small_moc_config(std::int64_t keep) {
  TrainConfig config = small_config();
  config.model.ffn = FeedForwardKind::moc;
  config.model.llama.moc = MocConfig{.keep = keep};
  return config;
}

// Eight of the nine products of an FFN's step are of the kept channels alone where these are few;
// three multiply-adds a channel and element of the hidden size, one of them of all channels, are
// forward, and six backward.
TEST(Plan, OperationsOfMocAreOfWhatIsKept) {
  const TrainConfig config = small_moc_config(44);
  const LlamaConfig& model = config.model.llama;
  const TrainingPlan plan = make_plan(config, 1, machine_with_rates());
  const Work work = plan.work();
  const double ffn = 800.0 * static_cast<double>(model.hidden_size * model.num_layers);
  EXPECT_DOUBLE_EQ(work.channel_flops, 16.0 * 44.0 * ffn);
  const Work dense = make_plan(small_config(), 1, {}).work();
  const auto channels = static_cast<double>(model.intermediate_size);
  EXPECT_DOUBLE_EQ(work.gemm_flops, dense.gemm_flops - 16.0 * channels * ffn);
  EXPECT_NEAR(plan.time->gemm_seconds, work.gemm_flops / 1e11 + work.channel_flops / 6e10, 1e-9);
  // The forward pass again, but for the down projection.
  TrainConfig again = config;
  again.model.recompute = Recompute::block;
  const Work more = make_plan(again, 1, {}).work();
  EXPECT_DOUBLE_EQ(more.channel_flops - work.channel_flops, 2.0 * 44.0 * ffn);
  const double attention_weights =
      static_cast<double>(model.num_layer_parameters() - 2 * model.hidden_size) -
      3.0 * channels * static_cast<double>(model.hidden_size);
  EXPECT_NEAR(more.gemm_flops - work.gemm_flops,
              2.0 * channels * ffn + 2.0 * 800.0 * attention_weights * model.num_layers,
              1e-9 * work.gemm_flops);
}

TEST(Plan, MocOfManyChannelsMakesDenseProducts) {
  const Work work = make_plan(small_moc_config(300), 1, {}).work();
  EXPECT_EQ(work.channel_flops, 0.0);
  EXPECT_DOUBLE_EQ(work.gemm_flops, make_plan(small_config(), 1, {}).work().gemm_flops);
}

TEST(Plan, RecomputationCostsTimeAndSavesActivations) {
  TrainConfig config = small_config();
  const PlanningMachine machine = machine_with_rates();
  const TrainingPlan exact = make_plan(config, 1, machine);
  config.model.recompute = Recompute::block;
  const TrainingPlan recompute = make_plan(config, 1, machine);
  EXPECT_GT(recompute.time->seconds, exact.time->seconds);
  EXPECT_LT(recompute.ranks[0].device_bytes(MemoryCategory::activations),
            exact.ranks[0].device_bytes(MemoryCategory::activations));
}

TEST(Plan, OneProcessHasNoLinks) {
  EXPECT_TRUE(make_plan(small_config(), 1, {}).links.empty());
}

// 2 replicas of 2 stages: ranks 0 and 1 hold the first stage, 2 and 3 the second.
TEST(Plan, LinksOfReplicasAndStages) {
  TrainConfig config = small_config();
  config.parallel.pipeline = 2;
  const TrainingPlan plan = make_plan(config, 4, {});
  std::map<std::pair<int, int>, std::int64_t> bytes;
  for (const Link& link : plan.links) bytes[{link.from, link.to}] = link.bytes;
  const std::int64_t gradients = plan.ranks[2].device_bytes(MemoryCategory::gradients);
  // Half of the gradients to be summed, and the sum of the other half.
  EXPECT_EQ((bytes[{2, 3}]), gradients);
  EXPECT_EQ((bytes[{3, 2}]), gradients);
  // 2 micro-batches of 2 x 100 tokens and 128 floats, both ways.
  const std::int64_t activations = std::int64_t{2} * 2 * 100 * 128 * 4;
  EXPECT_EQ((bytes[{0, 2}]), activations);
  EXPECT_EQ((bytes[{3, 1}]), activations);
  EXPECT_EQ(bytes.size(), 8u);
  EXPECT_EQ(bytes.count({0, 3}), 0u);
}

TEST(Plan, SnapshotStandsOnTheFirstReplicaOnly) {
  TrainConfig config = small_config();
  const TrainingPlan plan = make_plan(config, 2, {});
  EXPECT_GE(plan.ranks[0].checkpoint_copy, 3 * 4 * config.model.llama.num_parameters());
  EXPECT_EQ(plan.ranks[1].checkpoint_copy, 0);
  config.checkpoint.async = false;
  EXPECT_EQ(make_plan(config, 2, {}).ranks[0].checkpoint_copy, 0);
}

// With every operation at its own rate.
TEST(Plan, TimeFollowsFromTheRates) {
  // It would decide the threads instead of the share of the cores.
  unsetenv("OMP_NUM_THREADS");
  const PlanningMachine machine = machine_with_rates();
  const TrainingPlan plan = make_plan(small_config(), 1, machine);
  const Work work = plan.work();
  const StepTime& time = *plan.time;
  EXPECT_NEAR(time.seconds,
              work.gemm_flops / 1e11 + work.attention_forward_flops / 5e10 +
                  work.attention_backward_flops / 4e10 + work.traffic_bytes / 1e10,
              1e-9);
  EXPECT_LT(time.floor_seconds, time.seconds);
  EXPECT_NEAR(plan.tokens_per_second() * time.seconds, 800.0, 1e-6);
  // Two stages on the same machine: each has half of the cores, and waits at times.
  TrainConfig staged = small_config();
  staged.parallel.pipeline = 2;
  const TrainingPlan pipeline = make_plan(staged, 2, machine);
  EXPECT_EQ(pipeline.threads, 2);
  EXPECT_GT(pipeline.time->idle_seconds, 0.0);
  EXPECT_GT(pipeline.time->seconds, time.seconds);
}

TEST(Plan, NeighboursThatAreImpossibleAreLeftOut) {
  TrainConfig config = small_config();
  const auto changes = [](const TrainConfig& tested) {
    const TrainingPlan plan = make_plan(tested, 1, {});
    return plan_neighbours(plan, {}).size();
  };
  EXPECT_EQ(changes(config), 7u);
  config.model.llama.tie_embeddings = true;  // no stages
  EXPECT_EQ(changes(config), 6u);
  config.checkpoint.async = false;
  EXPECT_EQ(changes(config), 5u);
}

// The pages of the token files are not needed, for the system may take them back.
TEST(Plan, TellsWhatDoesNotFitTheMachine) {
  PlanningMachine machine;
  machine.surroundings = {.process_base = 1 << 20, .token_file_bytes = 1 << 30};
  const TrainingPlan plan = make_plan(small_config(), 2, machine);
  EXPECT_GT(plan.ranks[0].token_pages, 0);
  EXPECT_EQ(plan.needed_bytes(), plan.all_processes_bytes() - 2 * plan.ranks[0].token_pages);
  EXPECT_TRUE(fits(plan, {})) << "where nothing is known";
  EXPECT_TRUE(fits(plan, {.bytes = plan.needed_bytes()}));
  EXPECT_FALSE(fits(plan, {.bytes = plan.needed_bytes() - 1}));
  EXPECT_TRUE(fits(plan, {.bytes = plan.needed_bytes() - 1, .swap_bytes = 1}));
}

DeviceChoice gpu_in(Precision precision) {
  DeviceChoice choice;
  choice.backend = Backend::cuda;
  choice.precision = precision;
  return choice;
}

PlanningMachine machine_with_gpu(std::int64_t memory_bytes = 0) {
  PlanningMachine machine;
  machine.gpu = PlannedGpu{Device::create_counting(Backend::cuda, 1), memory_bytes};
  return machine;
}

TEST(Plan, GpusSumGradientsInARing) {
  const TrainConfig config = settle_device(small_config(), gpu_in(Precision::bf16));
  const TrainingPlan plan = make_plan(config, 4, machine_with_gpu());
  ASSERT_EQ(plan.links.size(), 4u);
  const std::int64_t gradients = plan.ranks[0].device_bytes(MemoryCategory::gradients);
  for (const Link& link : plan.links) {
    EXPECT_EQ(link.to, (link.from + 1) % 4);
    EXPECT_EQ(link.bytes, 2 * gradients * 3 / 4);
  }
}

// Bytes for each parameter, by category.
TEST(Plan, GpusHoldTheNumbersOfThePrecision) {
  const auto parameters = static_cast<double>(small_config().model.llama.num_parameters());
  const double rotary = 4.0 * 128 * small_config().model.llama.head_dim;
  struct Bytes {
    Precision precision;
    double weights, gradients, optimizer, a_residual;
  };
  for (const Bytes& expected :
       {Bytes{Precision::fp32, 4, 4, 8, 4}, Bytes{Precision::bf16, 6, 4, 8, 2},
        Bytes{Precision::bf16_pure, 2, 2, 4, 2}}) {
    const TrainConfig config = settle_device(small_config(), gpu_in(expected.precision));
    const TrainingPlan plan = make_plan(config, 1, machine_with_gpu());
    const RankMemory& rank = plan.ranks[0];
    const auto bytes_of = [&](MemoryCategory category) {
      return static_cast<double>(rank.device_bytes(category));
    };
    // All but the padding of some cache lines.
    EXPECT_NEAR(bytes_of(MemoryCategory::weights) - rotary, expected.weights * parameters, 10000);
    EXPECT_NEAR(bytes_of(MemoryCategory::gradients), expected.gradients * parameters, 10000);
    EXPECT_NEAR(bytes_of(MemoryCategory::optimizer), expected.optimizer * parameters, 10000);
    for (const MemoryPart& part : rank.dry.parts) {
      if (std::string(part.purpose) != "residual after attention") continue;
      // 4 blocks, and the whole micro-batch of 2 x 100 tokens in one pass.
      EXPECT_EQ(static_cast<double>(part.bytes), expected.a_residual * 4 * 2 * 100 * 128);
    }
    EXPECT_GT(rank.device_total(), rank.total());
    std::int64_t shown = 0;
    for (const MemoryRow& row : memory_rows(rank)) shown += row.is_part ? 0 : row.bytes;
    EXPECT_EQ(shown, rank.device_total());
    shown = 0;
    for (const MemoryRow& row : host_memory_rows(rank)) shown += row.bytes;
    EXPECT_EQ(shown, rank.total());
  }
}

// By the closed forms of the method's description (arXiv 2511.09323): of a token and layer, f
// channels of which K are kept in numbers of so many bytes.
TEST(Plan, FeedForwardNetworksKeepWhatTheyAreSaidTo) {
  struct Case {
    bool on_gpu;  // bf16 there, fp32 on a CPU
    MocIndexChoice index;
    std::int64_t keep;
    bool as_bitmap;
  };
  constexpr std::int64_t f = 352;
  for (const auto& [on_gpu, index, keep, as_bitmap] :
       {Case{false, MocIndexChoice::uint16, 64, false},
        Case{false, MocIndexChoice::bitmap, 64, true},
        Case{true, MocIndexChoice::uint16, 64, false}, Case{true, MocIndexChoice::bitmap, 8, true},
        // The smaller one: K > f / 16 = 22 or not.
        Case{true, MocIndexChoice::automatic, 23, true},
        Case{false, MocIndexChoice::automatic, 22, false}}) {
    const std::int64_t K = keep;
    SCOPED_TRACE(testing::Message() << on_gpu << ", " << K << " kept, " << as_bitmap);
    const auto kept = [&](std::int64_t in_bf16, std::int64_t in_fp32) {
      return on_gpu ? in_bf16 : in_fp32;
    };
    const std::int64_t all = as_bitmap ? kept(8 * K + f / 8, 16 * K + f / 8) : kept(10 * K, 18 * K);
    const std::int64_t elementwise =
        as_bitmap ? kept(4 * K + f / 8, 8 * K + f / 8) : kept(6 * K, 10 * K);
    const std::vector<std::pair<std::string, std::int64_t>> expected = {
        {"FFN 352, recompute none", kept(8 * f, 16 * f)},
        {"FFN 352, recompute elementwise", kept(4 * f, 8 * f)},
        {"FFN 352, recompute block", 0},
        {fmt::format("FFN {} of 352 channels (topk), recompute none", K), all},
        {fmt::format("FFN {} of 352 channels (topk), recompute elementwise", K), elementwise},
        {fmt::format("FFN {} of 352 channels (topk), recompute block", K), 0}};

    TrainConfig config = small_config();
    config.data.sequence_length = 128;  // no tensor of 2 x 128 tokens is padded
    config.model.ffn = FeedForwardKind::moc;
    config.model.moc.index = index;
    config.model.llama.moc = MocConfig{K};
    if (on_gpu) config = settle_device(config, gpu_in(Precision::bf16));
    const PlanningMachine machine = on_gpu ? machine_with_gpu() : PlanningMachine{};
    const auto choices = plan_ffn_choices(make_plan(config, 1, machine), machine);
    ASSERT_EQ(choices.size(), expected.size());
    const auto activations = [&](std::size_t i) {
      return choices[i].plan.ranks[0].device_bytes(MemoryCategory::activations);
    };
    // Counts of each layer's channels and of positive gates; rounded up to cache lines.
    const std::int64_t counts = (4 * (f + 2) * 4 + 63) / 64 * 64;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(choices[i].name, expected[i].first);
      EXPECT_EQ(choices[i].bytes_per_token, expected[i].second) << choices[i].name;
      if (i % 3 == 2) {
        EXPECT_LT(activations(i), activations(i - 1));
        continue;
      }
      EXPECT_EQ(activations(0) - activations(i) + (i > 2 ? counts : 0),
                2 * 128 * 4 * (expected[0].second - expected[i].second))
          << choices[i].name;
    }
  }
}

// MoC's own default where the config is dense; what MoC cannot be made of has no such rows.
TEST(Plan, FeedForwardNetworksThatAreNotConfiguredAreThereToo) {
  TrainConfig config = small_config();
  const auto names = [](const TrainConfig& tested) {
    std::vector<std::string> result;
    for (const FfnChoice& choice : plan_ffn_choices(make_plan(tested, 1, {}), {}))
      result.push_back(choice.name);
    return result;
  };
  ASSERT_EQ(names(config).size(), 6u);
  EXPECT_EQ(names(config)[4], "FFN 64 of 352 channels (topk), recompute elementwise");
  config.model.llama.intermediate_size = 65536;
  EXPECT_EQ(names(config), (std::vector<std::string>{"FFN 65536, recompute none",
                                                     "FFN 65536, recompute elementwise",
                                                     "FFN 65536, recompute block"}));
}

TEST(Plan, WhatAGpuHasNoRoomForDoesNotFit) {
  const TrainConfig config = settle_device(small_config(), gpu_in(Precision::bf16));
  const std::int64_t needed = make_plan(config, 1, machine_with_gpu()).largest_process_bytes();
  EXPECT_EQ(needed, make_plan(config, 1, machine_with_gpu()).ranks[0].device_total());
  for (const auto& [memory, fits] : {std::pair(needed, true), {needed - 1, false}, {0, true}}) {
    const PlanningMachine machine = machine_with_gpu(memory);
    EXPECT_EQ(fits_gpu(make_plan(config, 1, machine), machine), fits);
  }
}

// Each process has a GPU for itself, whose rates are the machine's.
TEST(Plan, TimeOnGpusIsOfOneEach) {
  PlanningMachine machine = machine_with_gpu();
  machine.rates = rates_from(5e13, 1e12);
  TrainConfig config = settle_device(small_config(), gpu_in(Precision::bf16));
  const TrainingPlan one = make_plan(config, 1, machine);
  const Work work = one.work();
  EXPECT_NEAR(one.time->seconds, work.flops() / 5e13 + work.traffic_bytes / 1e12, 1e-12);
  config.parallel.global_batch *= 4;
  const TrainingPlan four = make_plan(config, 4, machine);
  const Work& own = four.ranks[0].dry.step;
  EXPECT_EQ(own.flops(), work.flops());
  // The norm of the gradients is shared out.
  EXPECT_LT(own.traffic_bytes, work.traffic_bytes);
  EXPECT_NEAR(four.time->seconds, own.flops() / 5e13 + own.traffic_bytes / 1e12, 1e-12);
  // In fp32 it moves about twice the bytes.
  const TrainingPlan fp32 =
      make_plan(settle_device(small_config(), gpu_in(Precision::fp32)), 1, machine);
  EXPECT_GT(fp32.work().traffic_bytes, 1.2 * work.traffic_bytes);
  EXPECT_EQ(fp32.work().flops(), work.flops());
}

TEST(Plan, LayoutMustFit) {
  EXPECT_THROW(make_plan(small_config(), 3, {}), std::invalid_argument);
}

}  // namespace
}  // namespace chaski
