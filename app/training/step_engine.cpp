#include "app/training/step_engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/core.h>

#include "kernels/device/profile.h"
#include "optim/gradient_norm.h"

namespace chaski {
namespace {

constexpr const char* kReductionOp = "gradient_reduction";

}  // namespace

void StepEngine::Gate::gradients_ready(std::int64_t first, std::int64_t count) {
  if (target == nullptr) return;
  const ProfileScope scope(kReductionOp);
  target->gradients_ready(first, count);
}

StepEngine::StepEngine(Communicator& communicator, Device& device, const StepEngineOptions& options)
    : communicator_(communicator),
      passes_(passes_of(options.micro_batch, options.sequence_length, options.tokens_per_pass,
                        options.num_stages)),
      gradient_clip_(options.gradient_clip),
      roster_(Roster::initial(options.num_replicas, options.num_stages, communicator.size())),
      slot_(roster_.slots_of(roster_.process_at(communicator.rank())).front()) {
  StageOptions stage_options;
  stage_options.micro_batch = passes_.rows;
  stage_options.sequence_length = options.sequence_length;
  stage_options.recompute = options.recompute;
  stage_options.moc_index = options.moc_index;
  stage_options.precision = options.precision;
  stage_options.micro_batches_in_flight =
      max_in_flight(options.schedule, slot_.stage, options.num_stages, options.micro_batches);
  stage_ = std::make_unique<Stage>(device, options.model,
                                   stage_range(options.model, slot_.stage, options.num_stages),
                                   stage_options);
  optimizer_ = make_optimizer(device, stage_->parameters(), options.optimizer);
  reducer_ = std::make_unique<GradientReducer>(communicator, roster_.ranks_of_stage(slot_.stage),
                                               slot_.stage, stage_->parameters(), options.reducer);
  gate_.target = reducer_.get();
  executor_ = std::make_unique<PipelineExecutor>(
      communicator, roster_, options.schedule, options.micro_batches * passes_.count,
      std::vector<HostedSlot>{{.slot = slot_, .stage = stage_.get(), .listener = &gate_}});
  transaction_ = std::make_unique<StepTransaction>(communicator, [this] {
    executor_->abort();
    reducer_->abort();
  });
}

BatchSource StepEngine::passes_from(const BatchSource& source) const {
  if (passes_.count == 1) return source;
  return [this, &source](int replica, int pass) {
    const MicroBatch whole = source(replica, pass / passes_.count);
    const std::int64_t first = pass % passes_.count * passes_.rows;
    const std::int64_t count = std::min(passes_.rows, whole.tokens.dim(0) - first);
    return MicroBatch{whole.tokens.rows(first, count), whole.targets.rows(first, count),
                      whole.positions ? whole.positions.rows(first, count) : Tensor()};
  };
}

StepOutcome StepEngine::run(std::int64_t step, const BatchSource& source, std::int64_t targets,
                            double learning_rate, bool stop_requested) {
  transaction_->begin(step, roster_.version());
  StepOutcome outcome;
  try {
    outcome = run_open_step(source, targets, stop_requested);
  } catch (...) {
    transaction_->abort();
    throw;
  }
  if (outcome.verdict.commit) {
    before_update_();
    optimizer_->step({.updates = ++updates_,
                      .learning_rate = learning_rate,
                      .gradient_scale = clip_factor(outcome.gradient_norm, gradient_clip_)});
  }
  return outcome;
}

StepOutcome StepEngine::run_open_step(const BatchSource& source, std::int64_t targets,
                                      bool stop_requested) {
  reducer_->connect();  // anew after a step that was given up
  stage_->parameters().zero_gradients();
  const PipelineResult result =
      executor_->run_step(passes_from(source), 1.0f / static_cast<float>(targets));
  {
    const ProfileScope scope(kReductionOp);
    reducer_->finish();
  }
  // The replicas of a stage hold the same sums now and share their norm out.
  const double squares =
      gradient_sum_of_squares(stage_->parameters(), slot_.replica, roster_.num_replicas());
  const ProfileScope scope("agreement");
  std::array<double, 3> sums{result.loss_sum, static_cast<double>(result.num_targets), squares};
  communicator_.all_reduce_sum(std::span<double>(sums));
  StepOutcome outcome;
  outcome.targets = static_cast<std::int64_t>(sums[1]);
  outcome.loss = sums[0] / sums[1];
  outcome.gradient_norm = std::sqrt(sums[2]);
  outcome.communication_wait_seconds = reducer_->last_wait_seconds() + result.wait_seconds;
  StepVote vote;
  vote.non_finite = !std::isfinite(outcome.loss) || !std::isfinite(outcome.gradient_norm);
  vote.stop_requested = stop_requested;
  outcome.verdict = transaction_->agree(vote);
  return outcome;
}

std::string StepEngine::locate_nonfinite(const BatchSource& source, std::int64_t targets) {
  gate_.target = nullptr;
  stage_->parameters().zero_gradients();
  const PipelineResult result =
      executor_->run_step(passes_from(source), 1.0f / static_cast<float>(targets));
  gate_.target = reducer_.get();
  const NonFinite found = find_nonfinite_gradient(stage_->parameters());
  std::string finding;
  if (found.count > 0) {
    finding = fmt::format("rank {}: gradient of {} has {} NaN or infinite elements{}",
                          communicator_.rank(), found.name, found.count,
                          std::isfinite(result.loss_sum) ? "" : "; its loss is not finite either");
  } else if (!std::isfinite(result.loss_sum)) {
    finding = fmt::format("rank {}: the loss is not finite", communicator_.rank());
  }
  std::string findings;
  for (const std::string& line : communicator_.gather(finding, 0)) {
    if (!line.empty()) findings += (findings.empty() ? "" : "; ") + line;
  }
  return findings;
}

}  // namespace chaski
