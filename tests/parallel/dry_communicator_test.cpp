// Processes of a job that is not there: what they would send.

#include <array>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <vector>

#include "kernels/device/device.h"
#include "model/parameter.h"
#include "model/stage.h"
#include "parallel/membership/message_tags.h"
#include "parallel/mpi/communicator.h"
#include "parallel/pipeline/executor.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {
namespace {

TEST(DryCommunicator, IsCompleteAtOnceAndCountsBytes) {
  Communicator communicator(1, 3);
  EXPECT_EQ(communicator.rank(), 1);
  EXPECT_EQ(communicator.size(), 3);
  EXPECT_FALSE(communicator.survives_failures());
  char byte = 7;
  for (const int tag : {4, 5, 4}) {
    Request out = communicator.isend(&byte, std::int64_t{1} << 40, 2, tag);
    communicator.wait(out);
  }
  Request in = communicator.irecv(&byte, 1, 0, 9);
  EXPECT_TRUE(communicator.test(in));
  EXPECT_EQ(byte, 7);
  std::array<double, 1> sum{3.0};
  communicator.all_reduce_sum(std::span<double>(sum));
  EXPECT_EQ(sum[0], 3.0);
  EXPECT_EQ(communicator.agree(5), 5u);
  communicator.barrier();
  communicator.throw_if_peer_died();
  communicator.revoke();
  ASSERT_EQ(communicator.sent().size(), 2u);
  EXPECT_EQ(communicator.sent()[0].tag, 4);
  EXPECT_EQ(communicator.sent()[0].bytes, std::int64_t{2} << 40);
  EXPECT_EQ(communicator.sent()[1].bytes, std::int64_t{1} << 40);
}

// Parameters of sizes that nothing divides, with gradients.
std::unique_ptr<ParameterSet> odd_parameters(Device& device) {
  auto parameters = std::make_unique<ParameterSet>(device);
  for (const std::int64_t size : {700001, 13, 1200007, 90001}) {
    parameters->add("p" + std::to_string(size), ParameterKind::ffn, 0, {size});
  }
  parameters->allocate();
  parameters->allocate_gradients([](const Parameter&) { return true; });
  return parameters;
}

// What the ranks of a group of processes send each other in a step, and say that they do.
TEST(DryCommunicator, GradientsAreSentAsTheReducerSays) {
  constexpr int kRanks = 3;
  for (const Backend backend : {Backend::cpu, Backend::cuda}) {
    std::int64_t all = 0;
    for (int rank = 0; rank < kRanks; ++rank) {
      const auto device = Device::create_counting(backend, 1);
      const auto parameters = odd_parameters(*device);
      Communicator communicator(rank, kRanks);
      GradientReducer reducer(communicator, {0, 1, 2}, 0, *parameters);
      for (int step = 0; step < 2; ++step) reducer.finish();
      std::int64_t sent = 0;
      for (const Communicator::Sent& message : communicator.sent()) {
        EXPECT_NE(message.to, rank);
        EXPECT_FALSE(is_pipeline_tag(message.tag));
        sent += message.bytes;
      }
      EXPECT_EQ(sent, 2 * reducer.bytes_per_step());
      all += reducer.bytes_per_step();
    }
    // Each gradient goes to where it is summed from two, and back: with what aligns them at most.
    const std::int64_t gradients = 4 * (700001 + 13 + 1200007 + 90001);
    EXPECT_GE(all, 2 * (kRanks - 1) * gradients - kRanks * 4);
    EXPECT_LE(all, 2 * (kRanks - 1) * (gradients + 4 * 64));
  }
}

LlamaConfig small_model() {
  LlamaConfig config;
  config.hidden_size = 60;
  config.intermediate_size = 173;
  config.num_layers = 5;
  config.num_heads = 4;
  config.head_dim = 14;
  config.vocab_size = 301;
  config.resolve();
  return config;
}

// A process that hosts all slots of a roster: a stage for each of the pipeline's, shared by the
// replicas, each with room for its own micro-batches.
class WholePipeline {
 public:
  static constexpr int kMicroBatches = 3;

  WholePipeline(Device& device, const Roster& roster)
      : tokens_(device.allocate(DType::i32, {2, 33}, MemoryCategory::activations, "tokens")) {
    const LlamaConfig model = small_model();
    std::vector<HostedSlot> hosted;
    for (int stage = 0; stage < roster.num_stages(); ++stage) {
      const int room =
          max_in_flight(ScheduleKind::one_f_one_b, stage, roster.num_stages(), kMicroBatches);
      StageOptions options;
      options.micro_batch = 2;
      options.sequence_length = 33;
      options.micro_batches_in_flight = room * roster.num_replicas();
      stages_.push_back(std::make_unique<Stage>(
          device, model, stage_range(model, stage, roster.num_stages()), options));
      stages_.back()->initialize(1);
      for (const Slot slot : roster.replicas_of(stage)) {
        hosted.push_back({.slot = slot, .stage = stages_.back().get()});
      }
    }
    executor_ = std::make_unique<PipelineExecutor>(communicator_, roster, ScheduleKind::one_f_one_b,
                                                   kMicroBatches, hosted);
  }

  // A step and an evaluation, on tokens that are all the same.
  void run() {
    const auto source = [this](int, int) {
      return MicroBatch{tokens_.tensor(), tokens_.tensor(), {}};
    };
    executor_->run_step(source, 1.0f);
    executor_->evaluate(source, 1);
  }
  const Communicator& communicator() const { return communicator_; }

 private:
  Communicator communicator_{0, 1};
  Buffer tokens_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::unique_ptr<PipelineExecutor> executor_;
};

// As interleaved stages and as after a takeover: counted, a process takes what it takes.
TEST(DryPipeline, HoldsWhatAProcessOfSeveralSlotsHolds) {
  const Roster two_stages = Roster::initial(1, 2, 2).with_takeover(1, 0);
  const Roster two_slots = Roster::initial(2, 1, 2).with_takeover(1, 0);
  const Roster both =
      Roster::initial(2, 2, 4).with_takeover(1, 0).with_takeover(2, 0).with_takeover(3, 0);
  for (const Roster& roster : {two_stages, two_slots, both}) {
    SCOPED_TRACE(roster.to_string());
    const auto device = Device::create_cpu(2);
    WholePipeline pipeline(*device, roster);
    pipeline.run();
    const auto counting = Device::create_counting(Backend::cpu, 2);
    WholePipeline counted(*counting, roster);
    counted.run();
    EXPECT_EQ(counting->memory().current_bytes, device->memory().current_bytes);
    EXPECT_EQ(counting->workspace().largest_used(), device->workspace().largest_used());
    ASSERT_EQ(counting->memory_parts().size(), device->memory_parts().size());
    EXPECT_TRUE(counted.communicator().sent().empty()) << "nothing leaves the process";
  }
}

}  // namespace
}  // namespace chaski
