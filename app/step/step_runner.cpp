#include "app/step/step_runner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/core.h>

#include "kernels/device/profile.h"
#include "optim/gradient_norm.h"

namespace chaski {
namespace {

// The executor's micro-batches are passes. `source` must outlive the result.
BatchSource passes_from(const BatchSource& source, const Passes& passes) {
  if (passes.count == 1) return source;
  return [&source, passes](int replica, int pass) {
    const MicroBatch whole = source(replica, pass / passes.count);
    const std::int64_t first = pass % passes.count * passes.rows;
    const std::int64_t count = std::min(passes.rows, whole.tokens.dim(0) - first);
    return MicroBatch{whole.tokens.rows(first, count), whole.targets.rows(first, count),
                      whole.positions ? whole.positions.rows(first, count) : Tensor()};
  };
}

// What this process's gradients and loss have that is not finite; empty: nothing.
std::string nonfinite_of(const std::vector<std::unique_ptr<HostedStage>>& stages, double loss,
                         int rank) {
  for (const auto& stage : stages) {
    const NonFinite found = find_nonfinite_gradient(stage->model->parameters());
    if (found.count == 0) continue;
    return fmt::format("rank {}: gradient of {} has {} NaN or infinite elements{}", rank,
                       found.name, found.count,
                       std::isfinite(loss) ? "" : "; its loss is not finite either");
  }
  return std::isfinite(loss) ? "" : fmt::format("rank {}: the loss is not finite", rank);
}

}  // namespace

StepRunner::StepRunner(const Membership& membership, HostedModel& model, double gradient_clip)
    : membership_(membership),
      model_(model),
      gradient_clip_(gradient_clip),
      transaction_(membership.communicator(), [&model] { model.abort(); }) {}

StepOutcome StepRunner::run(const StepInput& input, const BatchSource& source) {
  transaction_.begin(input.step, membership_.roster().version());
  StepOutcome outcome;
  try {
    outcome = run_open_step(input, source);
  } catch (const PeerFailure&) {
    // Whoever has an error of its own says which; for the others it is no loss of a peer.
    if (transaction_.abort(StepFailure::peer).failed) {
      throw CommunicationError(
          fmt::format("another process could not complete step {}", input.step + 1));
    }
    throw;
  } catch (...) {
    transaction_.abort(StepFailure::here);
    throw;
  }
  if (outcome.verdict.commit) update(input, outcome.gradient_norm);
  return outcome;
}

PipelineResult StepRunner::run_passes(const BatchSource& source, std::int64_t targets) {
  model_.begin_step();
  return model_.executor().run_step(passes_from(source, model_.passes()),
                                    1.0f / static_cast<float>(targets));
}

StepOutcome StepRunner::run_open_step(const StepInput& input, const BatchSource& source) {
  const PipelineResult result = run_passes(source, input.targets);
  double wait_seconds = result.wait_seconds;
  {
    const ProfileScope scope(kReductionOp);
    for (const auto& stage : model_.stages()) {
      stage->reducer->finish();
      wait_seconds += stage->reducer->last_wait_seconds();
    }
  }
  const double squares = own_sum_of_squares();
  const ProfileScope scope("agreement");
  std::array<double, 3> sums{result.loss_sum, static_cast<double>(result.num_targets), squares};
  membership_.communicator().all_reduce_sum(std::span<double>(sums));
  StepOutcome outcome;
  outcome.targets = static_cast<std::int64_t>(sums[1]);
  outcome.loss = sums[0] / sums[1];
  outcome.gradient_norm = std::sqrt(sums[2]);
  outcome.communication_wait_seconds = wait_seconds;
  StepVote vote;
  vote.non_finite = !std::isfinite(outcome.loss) || !std::isfinite(outcome.gradient_norm);
  vote.stop_requested = input.stop_requested;
  outcome.verdict = transaction_.agree(vote);
  return outcome;
}

double StepRunner::own_sum_of_squares() const {
  const int num_replicas = membership_.roster().num_replicas();
  double squares = 0.0;
  for (const auto& stage : model_.stages()) {
    // The replicas of a stage hold the same sums now and share their norm out.
    for (const int replica : stage->replicas) {
      squares += gradient_sum_of_squares(stage->model->parameters(), replica, num_replicas);
    }
  }
  return squares;
}

void StepRunner::update(const StepInput& input, double gradient_norm) {
  before_update_();
  const OptimizerStep step{.updates = input.updates + 1,
                           .learning_rate = input.learning_rate,
                           .gradient_scale = clip_factor(gradient_norm, gradient_clip_)};
  for (const auto& stage : model_.stages()) stage->optimizer->step(step);
}

std::string StepRunner::locate_nonfinite(const BatchSource& source, std::int64_t targets) {
  model_.reduce_gradients(false);
  PipelineResult result;
  try {
    result = run_passes(source, targets);
  } catch (...) {
    model_.reduce_gradients(true);
    throw;
  }
  model_.reduce_gradients(true);
  Communicator& communicator = membership_.communicator();
  const std::string finding = nonfinite_of(model_.stages(), result.loss_sum, communicator.rank());
  std::string findings;
  for (const std::string& line : communicator.gather(finding, membership_.reporter_rank())) {
    if (!line.empty()) findings += (findings.empty() ? "" : "; ") + line;
  }
  return findings;
}

void StepRunner::agree_to_end(std::int64_t step) {
  transaction_.begin(step, membership_.roster().version());
  transaction_.agree({});
}

void StepRunner::give_up(std::int64_t step) noexcept {
  // A collective that failed here may have ended well elsewhere: they went on, and wait for a vote.
  if (transaction_.step() != step) transaction_.begin(step, membership_.roster().version());
  transaction_.abort(StepFailure::peer);
}

}  // namespace chaski
