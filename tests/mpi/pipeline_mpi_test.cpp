#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <stdexcept>

#include "kernels/loss/cross_entropy.h"
#include "mpi_session.h"
#include "parallel/pipeline/executor.h"
#include "parallel/reduction/gradient_reducer.h"
#include "tests/parallel/membership/roster_text.h"

namespace chaski {
namespace {

constexpr std::int64_t kMicroBatch = 2;
constexpr std::int64_t kLength = 8;
constexpr int kMicroBatches = 5;
constexpr std::uint64_t kSeed = 42;

LlamaConfig small_model() {
  LlamaConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_layers = 4;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.vocab_size = 61;
  config.initializer_range = 0.2;
  config.resolve();
  return config;
}

// The rows of a step: a function of (step, replica, micro-batch) alone.
class Rows {
 public:
  explicit Rows(Device& device) : device_(device) {}

  MicroBatch operator()(int step, int replica, int m) {
    const std::array<int, 3> key{step, replica, m};
    Pair& pair = pairs_[key];
    if (pair.tokens.empty()) {
      const Shape shape{kMicroBatch, kLength};
      pair.tokens = device_.allocate(DType::i32, shape, MemoryCategory::workspace);
      pair.targets = device_.allocate(DType::i32, shape, MemoryCategory::workspace);
      for (int i = 0; i < kMicroBatch * kLength; ++i) {
        const int value = (step * 31 + replica * 17 + m * 7 + i * i * 3 + i) % 61;
        pair.tokens.tensor().i32()[i] = value;
        pair.targets.tensor().i32()[i] = i % 5 == 4 ? kIgnoredTarget : (value * 5 + 3) % 61;
      }
    }
    MicroBatch batch;
    batch.tokens = pair.tokens.tensor();
    batch.targets = pair.targets.tensor();
    return batch;
  }

 private:
  struct Pair {
    Buffer tokens, targets;
  };
  Device& device_;
  std::map<std::array<int, 3>, Pair> pairs_;
};

std::unique_ptr<Stage> make_stage(Device& device, const StageRange& range, int in_flight) {
  StageOptions options;
  options.micro_batch = kMicroBatch;
  options.sequence_length = kLength;
  options.micro_batches_in_flight = in_flight;
  auto stage = std::make_unique<Stage>(device, small_model(), range, options);
  stage->initialize(kSeed);
  if (stage->parameters().all_gradients().empty()) {
    stage->parameters().allocate_gradients([](const Parameter&) { return true; });
  }
  return stage;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = 0; i < a.num_elements(); ++i) {
    difference += std::pow(static_cast<double>(a.f32()[i]) - b.f32()[i], 2);
    norm += std::pow(static_cast<double>(b.f32()[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// The whole model in one stage, one micro-batch after the other.
struct Reference {
  explicit Reference(Device& device) : rows(device), stage(make_stage(device, whole(), 1)) {}
  static StageRange whole() { return stage_range(small_model(), 0, 1); }

  // The loss of the micro-batches that Host::evaluate() runs.
  double evaluate(int step, int num_replicas) {
    for (int replica = 0; replica < num_replicas; ++replica) {
      for (int m = 0; m < kMicroBatches - replica; ++m) stage->evaluate(rows(step, replica, m), {});
    }
    return stage->take_loss_totals().sum;
  }

  double run(int step, int num_replicas, float scale) {
    stage->parameters().zero_gradients();
    double loss = 0;
    for (int replica = 0; replica < num_replicas; ++replica) {
      for (int m = 0; m < kMicroBatches; ++m) {
        const MicroBatch batch = rows(step, replica, m);
        stage->forward(0, batch, {}, scale);
        loss += stage->take_loss_totals().sum;
        stage->backward(0, batch, {}, nullptr);
      }
    }
    return loss;
  }

  Rows rows;
  std::unique_ptr<Stage> stage;
};

// Records that every parameter is announced exactly once in a step, then passes it on.
class Listener : public GradientListener {
 public:
  Listener(GradientReducer& reducer, std::int64_t num_parameters)
      : reducer_(reducer), announced(static_cast<std::size_t>(num_parameters), 0) {}
  void gradients_ready(std::int64_t first, std::int64_t count) override {
    for (std::int64_t i = first; i < first + count; ++i) ++announced[static_cast<std::size_t>(i)];
    reducer_.gradients_ready(first, count);
  }

 private:
  GradientReducer& reducer_;

 public:
  std::vector<int> announced;
};

// What this process hosts in a roster: one Stage for each stage, shared by the replicas hosted
// here.
class Host {
 public:
  Host(Communicator& communicator, const Roster& roster, ScheduleKind kind)
      : communicator_(&communicator),
        roster_(roster),
        kind_(kind),
        device_(Device::create_cpu(1)),
        rows_(*device_) {
    const int process = roster.process_at(communicator.rank());
    const auto slots = roster.slots_of(process);
    for (const Slot slot : slots) {
      const int index = slot.stage;
      if (stages_.contains(index)) continue;
      stages_[index] = make_stage(*device_, stage_range(small_model(), index, roster.num_stages()),
                                  stashes_needed(kind, roster, process, index, kMicroBatches));
    }
    connect(communicator);
  }

  // All that follows from the roster but the stages, on the same communicator or on another.
  void connect(Communicator& communicator) {
    executor_.reset();
    listeners_.clear();
    reducers_.clear();
    communicator_ = &communicator;
    for (auto& [index, stage] : stages_) {
      ParameterSet& parameters = stage->parameters();
      reducers_[index] = std::make_unique<GradientReducer>(
          communicator, roster_.ranks_of_stage(index), index, parameters);
      listeners_[index] = std::make_unique<Listener>(*reducers_[index], parameters.size());
    }
    std::vector<HostedSlot> hosted;
    for (const Slot slot : roster_.slots_of(roster_.process_at(communicator.rank()))) {
      HostedSlot h;
      h.slot = slot;
      h.stage = stages_[slot.stage].get();
      h.listener = listeners_[slot.stage].get();
      hosted.push_back(h);
    }
    executor_ =
        std::make_unique<PipelineExecutor>(communicator, roster_, kind_, kMicroBatches, hosted);
  }

  // The loss of the whole step; gradients are reduced.
  double run(int step, float scale, std::int64_t* targets) {
    for (auto& [index, stage] : stages_) {
      stage->parameters().zero_gradients();
      std::fill(listeners_[index]->announced.begin(), listeners_[index]->announced.end(), 0);
    }
    const PipelineResult result = executor_->run_step(source(step), scale);
    for (auto& [index, reducer] : reducers_) reducer->finish();
    return sum_over_processes(result, targets);
  }

  // Replica r has only the first kMicroBatches - r micro-batches.
  double evaluate(int step, std::int64_t* targets) {
    const BatchSource fewer = [this, step](int replica, int m) {
      return m < kMicroBatches - replica ? rows_(step, replica, m) : MicroBatch{};
    };
    return sum_over_processes(executor_->evaluate(fewer, kMicroBatches), targets);
  }

  void expect_same_gradients(const Host& other) const {
    for (const auto& [index, stage] : stages_) {
      const Tensor a = stage->parameters().all_gradients();
      const Tensor b = other.stages_.at(index)->parameters().all_gradients();
      EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.num_bytes())), 0);
    }
  }
  const MemoryUsage& memory() const { return device_->memory(); }

  void expect_gradients_of(Stage& whole) {
    for (auto& [index, stage] : stages_) {
      for (const Parameter& parameter : stage->parameters()) {
        EXPECT_LT(
            relative_difference(parameter.gradient, whole.parameters().at(parameter.name).gradient),
            2e-6)
            << parameter.name;
      }
      for (const int count : listeners_[index]->announced) EXPECT_EQ(count, 1);
    }
  }

  std::int64_t num_allocations() const { return device_->num_allocations(); }

 private:
  BatchSource source(int step) {
    return [this, step](int replica, int m) { return rows_(step, replica, m); };
  }

  double sum_over_processes(const PipelineResult& result, std::int64_t* targets) {
    double sums[] = {result.loss_sum, static_cast<double>(result.num_targets)};
    communicator_->all_reduce_sum(std::span<double>(sums));
    *targets = static_cast<std::int64_t>(sums[1]);
    return sums[0];
  }

  Communicator* communicator_;
  Roster roster_;
  ScheduleKind kind_;
  std::unique_ptr<Device> device_;
  Rows rows_;
  std::map<int, std::unique_ptr<Stage>> stages_;
  std::map<int, std::unique_ptr<GradientReducer>> reducers_;
  std::map<int, std::unique_ptr<Listener>> listeners_;
  std::unique_ptr<PipelineExecutor> executor_;
};

std::vector<Roster> rosters_of(int num_processes) {
  switch (num_processes) {
    case 1:
      return {Roster::initial(1, 1, 1), Roster::initial(1, 2, 2).with_takeover(1, 0),
              Roster::initial(1, 4, 4).with_takeover(2, 1).with_takeover(3, 1).with_takeover(0, 1),
              Roster::initial(2, 1, 2).with_takeover(0, 1)};
    case 2:
      return {Roster::initial(1, 2, 2),
              Roster::initial(2, 1, 2),
              Roster::initial(1, 3, 3).with_takeover(1, 2),
              Roster::initial(2, 2, 4).with_takeover(1, 0).with_takeover(3, 2),
              Roster::initial(2, 2, 4).with_takeover(2, 0).with_takeover(3, 1),
              Roster::initial(2, 2, 4).with_takeover(0, 3).with_takeover(1, 3)};
    case 3:
      return {Roster::initial(1, 3, 3), Roster::initial(2, 2, 4).with_takeover(3, 2),
              Roster::initial(2, 2, 4).with_takeover(1, 2)};
    default:
      return {Roster::initial(1, 4, 4), Roster::initial(2, 2, 4)};
  }
}

class PipelineOfSchedule : public testing::TestWithParam<ScheduleKind> {};

// However the stages are spread, loss and gradients are those of the whole model in one process.
TEST_P(PipelineOfSchedule, EqualsOneStage) {
  Communicator communicator(mpi_session());
  if (communicator.size() > 4) GTEST_SKIP() << "layouts for up to 4 processes";
  const auto device = Device::create_cpu(1);
  Reference reference(*device);
  for (const Roster& roster : rosters_of(communicator.size())) {
    SCOPED_TRACE(text_of(roster));
    Host host(communicator, roster, GetParam());
    const int replicas = roster.num_replicas();
    const std::int64_t expected_targets = replicas * kMicroBatches * (kMicroBatch * kLength - 3);
    const float scale = 1.0f / static_cast<float>(expected_targets);
    std::int64_t allocations = 0;
    for (int step = 0; step < 3; ++step) {
      const double expected = reference.run(step, replicas, scale);
      std::int64_t targets = 0;
      EXPECT_NEAR(host.run(step, scale, &targets), expected, 1e-6 * expected);
      EXPECT_EQ(targets, expected_targets);
      host.expect_gradients_of(*reference.stage);
      const double evaluated = reference.evaluate(step, replicas);
      EXPECT_NEAR(host.evaluate(step, &targets), evaluated, 1e-6 * evaluated);
      EXPECT_EQ(targets, expected_targets / (replicas * kMicroBatches) *
                             (replicas * kMicroBatches - replicas * (replicas - 1) / 2));
      if (step == 1) allocations = host.num_allocations();
    }
    // Rows of the third step aside (two buffers for each micro-batch and replica), nothing is new.
    const auto slots = roster.slots_of(roster.process_at(communicator.rank()));
    std::map<int, int> hosted_replicas;
    for (const Slot slot : slots) ++hosted_replicas[slot.replica];
    const auto new_rows = static_cast<std::int64_t>(2 * kMicroBatches * hosted_replicas.size());
    EXPECT_EQ(host.num_allocations(), allocations + new_rows);
  }
}

// In mid-run everything that follows from the roster is made again, now on the same communicator,
// now on another: nobody can tell from the numbers or from the memory.
TEST_P(PipelineOfSchedule, MayBeRebuiltBetweenSteps) {
  Communicator communicator(mpi_session());
  if (communicator.size() > 4) GTEST_SKIP() << "layouts for up to 4 processes";
  for (const Roster& roster : rosters_of(communicator.size())) {
    SCOPED_TRACE(text_of(roster));
    Host kept(communicator, roster, GetParam());
    Host rebuilt(communicator, roster, GetParam());
    auto own = std::make_unique<Communicator>(mpi_session());
    for (int step = 0; step < 6; ++step) {
      std::int64_t targets = 0;
      const double loss = kept.run(step, 0.01f, &targets);
      EXPECT_EQ(rebuilt.run(step, 0.01f, &targets), loss);
      rebuilt.expect_same_gradients(kept);
      if (step % 2 == 0) {
        rebuilt.connect(communicator);
      } else {
        auto another = std::make_unique<Communicator>(mpi_session());
        rebuilt.connect(*another);
        own = std::move(another);
      }
      for (int i = 0; i < kNumMemoryCategories; ++i) {
        const auto category = static_cast<MemoryCategory>(i);
        EXPECT_EQ(rebuilt.memory().current(category), kept.memory().current(category));
        EXPECT_EQ(rebuilt.memory().peak(category), kept.memory().peak(category));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, PipelineOfSchedule,
                         testing::Values(ScheduleKind::gpipe, ScheduleKind::one_f_one_b));

TEST(PipelineExecutor, RefusesWhatItCannotRun) {
  Communicator communicator(mpi_session());
  if (communicator.size() != 1) GTEST_SKIP() << "for one process";
  const auto device = Device::create_cpu(1);
  const auto stage = make_stage(*device, Reference::whole(), 1);
  const Roster roster = Roster::initial(1, 1, 1);
  const ScheduleKind kind = ScheduleKind::one_f_one_b;
  HostedSlot hosted;
  hosted.stage = stage.get();
  EXPECT_NO_THROW(PipelineExecutor(communicator, roster, kind, 4, {hosted}));
  EXPECT_THROW(PipelineExecutor(communicator, roster, ScheduleKind::gpipe, 4, {hosted}),
               std::invalid_argument);
  EXPECT_THROW(PipelineExecutor(communicator, roster, kind, 4, {}), std::invalid_argument);
  hosted.slot = {0, 1};
  EXPECT_THROW(PipelineExecutor(communicator, roster, kind, 4, {hosted}), std::invalid_argument);
}

}  // namespace
}  // namespace chaski
