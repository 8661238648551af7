#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "app/step/hosted_model.h"
#include "app/step/membership.h"
#include "parallel/membership/step_transaction.h"

namespace chaski {

struct StepInput {
  std::int64_t step = 0;     // 0-based
  std::int64_t updates = 0;  // made before this step
  std::int64_t targets = 1;  // of the global batch
  double learning_rate = 0.0;
  bool stop_requested = false;  // here
};

struct StepOutcome {
  StepVerdict verdict;
  double loss = 0.0;                        // mean over the targets of the global batch, nats
  double gradient_norm = 0.0;               // global, before clipping
  std::int64_t targets = 0;                 // of the global batch
  double communication_wait_seconds = 0.0;  // not hidden behind computing, on this process
};

// A training step as a transaction over all processes (docs/architecture.md). Of one membership:
// made anew when that has changed.
class StepRunner {
 public:
  // `model` has adopted the membership; both must outlive this.
  StepRunner(const Membership& membership, HostedModel& model, double gradient_clip);

  // Called whenever the weights and the optimizer's state are about to change.
  void set_before_update(std::function<void()> callback) { before_update_ = std::move(callback); }

  // Forward, backward, reduction, agreement, and, when all agree, the update. Nothing changes
  // unless verdict.commit. `source` gives the micro-batches of each hosted replica. Throws
  // PeerFailure after undoing the step.
  StepOutcome run(const StepInput& input, const BatchSource& source);

  // Runs the step's passes again without reduction to find where numbers stop being finite; to be
  // called by all processes after a verdict of non_finite. On the reporter: one line per process
  // that has any, naming rank and tensor; elsewhere empty.
  std::string locate_nonfinite(const BatchSource& source, std::int64_t targets);

  // Instead of `step`, after the last one: all are done, or PeerFailure is thrown on all.
  void agree_to_end(std::int64_t step);
  // After a PeerFailure, in run() or since: lets everybody know, drops what is in flight, and has
  // its part in giving up `step`, the next to be committed, which others may have begun.
  void give_up(std::int64_t step) noexcept;

 private:
  StepOutcome run_open_step(const StepInput& input, const BatchSource& source);
  PipelineResult run_passes(const BatchSource& source, std::int64_t targets);
  // Σ of squares over the gradients that this process accounts for: of each hosted slot, the
  // replica's share of its stage.
  double own_sum_of_squares() const;
  void update(const StepInput& input, double gradient_norm);

  const Membership& membership_;
  HostedModel& model_;
  double gradient_clip_;
  std::function<void()> before_update_ = [] {};
  StepTransaction transaction_;
};

}  // namespace chaski
