#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "app/config/config.h"
#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/stage.h"
#include "optim/factory.h"
#include "optim/optimizer.h"
#include "parallel/membership/roster.h"
#include "parallel/membership/step_transaction.h"
#include "parallel/mpi/communicator.h"
#include "parallel/pipeline/executor.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {

struct StepEngineOptions {
  LlamaConfig model;
  int num_replicas = 1;
  int num_stages = 1;
  int micro_batches = 1;  // of a replica in a step
  std::int64_t micro_batch = 1;
  std::int64_t sequence_length = 1;
  std::int64_t tokens_per_pass = kTokensPerPass;
  Recompute recompute = Recompute::elementwise;
  std::optional<MocIndex> moc_index = std::nullopt;
  Precision precision = Precision::fp32;
  ScheduleKind schedule = ScheduleKind::one_f_one_b;
  GradientReducerOptions reducer;
  OptimizerOptions optimizer;
  double gradient_clip = 1.0;
};

struct StepOutcome {
  StepVerdict verdict;
  double loss = 0.0;                        // mean over the targets of the global batch, nats
  double gradient_norm = 0.0;               // global, before clipping
  std::int64_t targets = 0;                 // of the global batch
  double communication_wait_seconds = 0.0;  // not hidden behind computing, on this process
};

// This process's part of the training job: its stage, optimizer, pipeline and gradient reduction,
// and the step as a transaction over all of them (docs/architecture.md).
class StepEngine {
 public:
  StepEngine(Communicator& communicator, Device& device, const StepEngineOptions& options);

  Stage& stage() { return *stage_; }
  Optimizer& optimizer() { return *optimizer_; }
  PipelineExecutor& executor() { return *executor_; }
  std::int64_t rows_per_pass() const { return passes_.rows; }  // of the executor's micro-batches
  const Roster& roster() const { return roster_; }
  Slot slot() const { return slot_; }
  // Of the weights so far: one for each step that was committed. A resumed run sets them.
  std::int64_t updates() const { return updates_; }
  void set_updates(std::int64_t updates) { updates_ = updates; }

  // Called whenever the weights and the optimizer's state are about to change.
  void set_before_update(std::function<void()> callback) { before_update_ = std::move(callback); }

  // Runs the 0-based step: forward, backward, reduction, agreement, and, when all agree, the update
  // with `learning_rate`. Nothing changes unless verdict.commit. `targets` is the number of targets
  // of the global batch. Throws PeerFailure after undoing the step.
  StepOutcome run(std::int64_t step, const BatchSource& source, std::int64_t targets,
                  double learning_rate, bool stop_requested);

  // Runs the step's passes again without reduction to find where numbers stop being finite; to be
  // called by all processes after a verdict of non_finite. On rank 0: one line per process that has
  // any, naming rank and tensor; elsewhere empty.
  std::string locate_nonfinite(const BatchSource& source, std::int64_t targets);

 private:
  // Passes on what a backward pass announces, unless switched off.
  class Gate : public GradientListener {
   public:
    void gradients_ready(std::int64_t first, std::int64_t count) override;
    GradientListener* target = nullptr;
  };

  StepOutcome run_open_step(const BatchSource& source, std::int64_t targets, bool stop_requested);

  // The executor's micro-batches are passes.
  BatchSource passes_from(const BatchSource& source) const;

  Communicator& communicator_;
  Passes passes_;
  double gradient_clip_;
  std::int64_t updates_ = 0;
  std::function<void()> before_update_ = [] {};
  Roster roster_;
  Slot slot_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<GradientReducer> reducer_;
  Gate gate_;
  std::unique_ptr<PipelineExecutor> executor_;
  std::unique_ptr<StepTransaction> transaction_;
};

}  // namespace chaski
