#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "app/config/config.h"
#include "app/step/membership.h"
#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/stage.h"
#include "optim/factory.h"
#include "optim/optimizer.h"
#include "parallel/pipeline/executor.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {

struct HostedModelOptions {
  LlamaConfig model;
  int micro_batches = 1;         // of a replica in a step
  std::int64_t micro_batch = 1;  // rows
  std::int64_t sequence_length = 1;
  std::int64_t tokens_per_pass = kTokensPerPass;
  Recompute recompute = Recompute::elementwise;
  std::optional<MocIndex> moc_index = std::nullopt;
  Precision precision = Precision::fp32;
  ScheduleKind schedule = ScheduleKind::one_f_one_b;
  GradientReducerOptions reducer;
  OptimizerOptions optimizer;
};

// Of a run with this config, whose device is settled (settle_device), and so many micro-batches of
// each replica in a step.
HostedModelOptions hosted_model_options(const TrainConfig& config, std::int64_t micro_batches);

// What the profile calls summing gradients over the replicas.
inline constexpr const char* kReductionOp = "gradient_reduction";

// Passes on what a backward pass announces, unless switched off.
class ListenerSwitch : public GradientListener {
 public:
  void gradients_ready(std::int64_t first, std::int64_t count) override;
  GradientListener* target = nullptr;
};

// A stage of the model that this process hosts, for one replica or for several, whose gradients add
// up in it.
struct HostedStage {
  int stage = 0;
  std::vector<int> replicas;  // ascending
  std::unique_ptr<Stage> model;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<GradientReducer> reducer;
  ListenerSwitch listener;
};

// This process's part of the model: the stages that it hosts, what sums their gradients over the
// replicas, and what runs their passes.
class HostedModel {
 public:
  HostedModel(Device& device, const HostedModelOptions& options);
  HostedModel(const HostedModel&) = delete;
  HostedModel& operator=(const HostedModel&) = delete;

  // Makes all that follows from the roster, at first and whenever it has changed; all live
  // processes call it at a time, between two steps. A stage that was hosted before keeps its
  // weights and its optimizer's state; returns the stages that are new, whose weights are zeros.
  // The membership must outlive this or the next call. Throws std::invalid_argument where it gives
  // this process no slot.
  std::vector<int> adopt(const Membership& membership);

  const HostedModelOptions& options() const { return options_; }
  std::vector<std::unique_ptr<HostedStage>>& stages() { return stages_; }
  PipelineExecutor& executor() { return *executor_; }
  // A micro-batch goes through the model in such passes, which are the executor's micro-batches.
  const Passes& passes() const { return passes_; }

  // Random weights; the values do not depend on the layout.
  void initialize(std::uint64_t seed);
  // Before a step's passes: gradients are zero, nothing of a step that was given up is left.
  void begin_step();
  // Whether finished gradients are sent while a backward pass runs.
  void reduce_gradients(bool reduce);
  // Drops what is in flight of a step that is given up.
  void abort() noexcept;

 private:
  bool hosts(int stage) const;
  HostedStage& host(const Membership& membership, int stage, const std::vector<int>& replicas);

  Device& device_;
  HostedModelOptions options_;
  Passes passes_;
  std::vector<std::unique_ptr<HostedStage>> stages_;  // ascending
  std::unique_ptr<PipelineExecutor> executor_;
  bool aborted_ = false;  // the step before
};

}  // namespace chaski
