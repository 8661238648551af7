#include "app/training/run.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <span>
#include <stdexcept>

#include "app/console/human_format.h"
#include "app/job/job.h"
#include "app/job/process_memory.h"
#include "app/plan/dry_run.h"
#include "app/training/replica_check.h"
#include "fault/checkpoint/directory.h"
#include "kernels/device/timer.h"

namespace chaski {
namespace {

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace

void TrainingRun::run() {
  if (!begin()) return;
  try {
    while (advance()) {
    }
    finish();
  } catch (const PeerFailure& failure) {
    end_by(failure);
  }
}

bool TrainingRun::begin() {
  print_start();
  first_step_ = progress_.steps;
  replicas_equal_at_ = progress_.steps;
  last_step_ = config_.schedule.steps;
  if (options_.max_steps > 0) last_step_ = std::min(last_step_, first_step_ + options_.max_steps);
  if (first_step_ >= last_step_) {
    outputs_.note(
        fmt::format("nothing to do: step {} of {} is done", first_step_, config_.schedule.steps));
    return false;
  }
  if (config_.model.llama.moc) {
    channels_.emplace(config_.model.llama, first_step_, config_.log.dead_channel_steps);
  }
  if (membership_.reports()) data_.start_verification();
  return true;
}

void TrainingRun::do_together(const std::function<void()>& work) {
  try {
    work();
  } catch (const PeerFailure&) {
    runner_->give_up(progress_.steps);
    checkpoints_->abandon();
    record_pending();
    throw;
  }
}

bool TrainingRun::advance() {
  bool stop = false;
  do_together([&] { stop = step_once(); });
  return !stop && progress_.steps < last_step_;
}

bool TrainingRun::step_once() {
  const auto start = std::chrono::steady_clock::now();
  StepRecord record;
  record.learning_rate = learning_rate_.at(progress_.steps);
  feed_->upload(options_.overfit_batch ? 0 : progress_.steps);
  const StepInput input{.step = progress_.steps,
                        .updates = progress_.updates,
                        .targets = tokens_per_step(),
                        .learning_rate = record.learning_rate,
                        .stop_requested = stop_signal_.requested()};
  record.outcome = runner_->run(input, feed_->source());
  record.seconds = seconds_since(start);
  const StepVerdict verdict = record.outcome.verdict;
  ++progress_.steps;
  if (verdict.commit) ++progress_.updates;
  pending_record_ = std::move(record);

  if (verdict.non_finite) handle_nonfinite();
  if (verdict.commit) skipped_in_a_row_ = 0;
  follow_commit(*pending_record_);
  record_pending();
  if (is_due(config_.checkpoint.every)) try_save();
  report_saves();
  if (const std::string damage = data_.newly_found_damage(); !damage.empty()) {
    outputs_.warning(damage + "; training goes on with what it holds", communicator().rank());
  }
  report_refused_graphs();
  if (verdict.stop) {
    outputs_.note(fmt::format("asked to stop: saving step {} and ending", progress_.steps));
  }
  return verdict.stop;
}

// What is found out about the weights after an update, before it is written down.
void TrainingRun::follow_commit(StepRecord& record) {
  if (is_due(config_.run.check_replicas)) {
    check_replicas(membership_, *model_, progress_.steps, replicas_equal_at_);
    replicas_equal_at_ = progress_.steps;
  }
  if (data_.validation() != nullptr && (is_last() || is_due(config_.evaluation.every))) {
    record.validation = validate();
  }
  record.channels = observe_channels(record.outcome.verdict.commit);
}

void TrainingRun::handle_nonfinite() {
  const std::string where = runner_->locate_nonfinite(feed_->source(), tokens_per_step());
  const std::string message =
      fmt::format("step {} is not finite{}", progress_.steps, where.empty() ? "" : ": " + where);
  ++skipped_in_a_row_;
  const bool stop = config_.run.nonfinite == NonfinitePolicy::stop;
  if (stop || skipped_in_a_row_ > config_.run.max_skipped_steps) {
    // The weights are those of the last good step; everybody leaves with the reporter's message.
    const std::string shared = run_on_root(communicator(), [&] { return message; });
    throw std::runtime_error(fmt::format(
        "{}{}\nhint: lower optimizer.lr, or resume from an earlier checkpoint; the step changed "
        "no weight",
        shared,
        stop ? ""
             : fmt::format("; the {} before it {} skipped",
                           format_number_of(skipped_in_a_row_ - 1, "step"),
                           skipped_in_a_row_ == 2 ? "was" : "were")));
  }
  if (outputs_.reports()) {
    outputs_.warning(message + "; the step is skipped", communicator().rank());
  }
}

void TrainingRun::record_pending() {
  if (!pending_record_) return;
  const StepRecord record = *std::exchange(pending_record_, std::nullopt);
  if (!outputs_.reports()) return;
  const double seconds = record.seconds;
  // The first step also allocates and packs: it says little about the next ones.
  seconds_per_step_ =
      progress_.steps <= first_step_ + 2 ? seconds : 0.9 * seconds_per_step_ + 0.1 * seconds;
  StepMetrics entry;
  entry.step = progress_.steps;
  entry.loss = record.outcome.loss;
  entry.lr = record.learning_rate;
  entry.grad_norm = record.outcome.gradient_norm;
  entry.tokens = progress_.steps * tokens_per_step();
  entry.tokens_per_second = static_cast<double>(tokens_per_step()) / seconds;
  entry.seconds = seconds;
  entry.extras["epoch"] = feed_->epoch(progress_.steps - 1);
  if (!record.outcome.verdict.commit) entry.extras["skipped"] = true;
  if (!record.channels.empty()) entry.extras["channels"] = record.channels;
  if (record.validation) {
    entry.extras["validation_loss"] = record.validation->loss();
    entry.extras["validation_bits_per_byte"] =
        record.validation->bits_per_byte(tokens_per_byte(*data_.validation()));
  }
  outputs_.record(entry);
  if (is_logged()) show(entry);
}

void TrainingRun::show(const StepMetrics& entry) {
  StepLine line;
  line.step = entry.step;
  line.total_steps = config_.schedule.steps;
  line.loss = entry.loss;
  line.lr = entry.lr;
  line.grad_norm = entry.grad_norm;
  line.tokens_per_second = entry.tokens_per_second;
  line.ceiling_share = ceiling_share(entry.tokens_per_second);
  line.memory_bytes = resident_bytes();
  line.eta_seconds = seconds_per_step_ * static_cast<double>(config_.schedule.steps - entry.step);
  outputs_.step(line);
}

bool TrainingRun::is_logged() const {
  return progress_.steps == first_step_ + 1 || is_last() || is_due(config_.log.every);
}

nlohmann::ordered_json TrainingRun::observe_channels(bool committed) {
  if (!channels_) return {};
  for (const auto& stage : model_->stages()) {
    // That of a skipped step is of numbers that are none, and of a forward pass made twice.
    const std::vector<ChannelUse> use = stage->model->take_channel_use();
    if (committed) channels_->add(stage->model->range(), use, progress_.steps);
  }
  if (!is_logged()) return {};
  communicator().all_reduce_sum(channels_->sums());
  communicator().all_reduce_max(channels_->last_selected());
  return channels_->report(progress_.steps);
}

double TrainingRun::ceiling_share(double tokens_per_second) {
  const double gflops = 1e-9 * tokens_per_second *
                        config_.model.llama.training_flops_per_token(config_.data.sequence_length);
  // What was measured for half a second at the start was too little where the machine has become
  // faster since, because another program has ended or the processor's clock has risen.
  gemm_ceiling_ = std::max(gemm_ceiling_, gflops);
  return gflops / gemm_ceiling_;
}

EvaluationResult TrainingRun::validate() {
  const auto start = std::chrono::steady_clock::now();
  const EvaluationSetting setting{communicator(),
                                  model_->executor(),
                                  membership_.roster().num_replicas(),
                                  feed_->evaluation_tensors(),
                                  model_->passes().rows,
                                  config_.data.sequence_length};
  const EvaluationResult result =
      evaluate(setting, data_.validation(), config_.evaluation.tokens, nullptr);
  last_validation_ = result;
  ValidationLine line;
  line.step = progress_.steps;
  line.loss = result.loss();
  line.bits_per_byte = result.bits_per_byte(tokens_per_byte(*data_.validation()));
  line.tokens = result.tokens;
  line.seconds = seconds_since(start);
  outputs_.validation(line);
  return result;
}

void TrainingRun::save() {
  checkpoints_->save(metadata());
  saved_step_ = progress_.steps;
}

void TrainingRun::wait_for_saves() {
  communicator().wait_until([this] {
    if (!checkpoints_->busy()) return Progress::done;
    communicator().throw_if_peer_died();
    return Progress::none;
  });
}

void TrainingRun::try_save() {
  wait_for_saves();
  survive_failed_save([this] { checkpoints_->wait(); });
  survive_failed_save([this] { save(); });
}

bool TrainingRun::survive_failed_save(const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (const std::runtime_error& error) {
    outputs_.warning(first_line(error.what()) + "; training goes on", communicator().rank());
    return false;
  }
}

void TrainingRun::report_saves() {
  if (!survive_failed_save([this] { checkpoints_->check(); })) saved_step_ = kNothingSaved;
  if (!outputs_.reports()) return;
  for (const SaveReport& report : checkpoints_->take_reports()) {
    // Even where older ones could not be deleted after it.
    saved_step_ = std::max(saved_step_, report.step);
    if (report.directory_vanished) {
      outputs_.warning(checkpoints_->directory() + " had vanished and was made again",
                       communicator().rank());
    }
    outputs_.note(fmt::format("saved {} ({:.1f} MiB in {:.2f} s, training waited {:.2f} s)",
                              report.path, static_cast<double>(report.bytes) / (1 << 20),
                              report.total_seconds, report.stall_seconds));
  }
}

void TrainingRun::report_refused_graphs() {
  if (told_of_graphs_ || !outputs_.reports() || device_->graph_refusal().empty()) return;
  told_of_graphs_ = true;
  outputs_.warning(fmt::format("the GPU's ops are queued one by one: {}", device_->graph_refusal()),
                   communicator().rank());
}

void TrainingRun::report_memory() {
  const DryRun planned = dry_run(*device_, settle_device(config_, device_choice_),
                                 membership_.roster(), communicator().rank());
  const MemoryUsage& taken = device_->memory();
  std::int64_t peak = 0;
  bool as_planned = true;
  std::string parts;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    const std::int64_t bytes = taken.peak(category);
    const std::int64_t expected = planned.memory.current(category);
    peak += bytes;
    as_planned = as_planned && bytes == expected;
    if (bytes == 0 && expected == 0) continue;
    parts +=
        fmt::format("{}{} {}", parts.empty() ? "" : ", ", name_of(category), format_bytes(bytes));
    if (bytes != expected) parts += fmt::format(" (planned {})", format_bytes(expected));
  }
  std::vector<std::int64_t> peaks(static_cast<std::size_t>(communicator().size()));
  peaks[static_cast<std::size_t>(communicator().rank())] = peak;
  communicator().all_reduce_sum(std::span<std::int64_t>(peaks));
  const std::string plan =
      as_planned ? "as planned" : format_bytes(planned.memory.total_current()) + " planned";
  const std::vector<std::string> lines = communicator().gather(
      fmt::format("{} at most, {}: {}; the whole process {}", format_bytes(peak), plan, parts,
                  format_bytes(peak_resident_bytes())),
      membership_.reporter_rank());
  if (lines.empty()) return;
  const auto largest = std::max_element(peaks.begin(), peaks.end()) - peaks.begin();
  const std::string whose = peaks.size() == 1 ? "" : fmt::format(" of rank {}", largest);
  outputs_.note("memory" + whose + ": " + lines[static_cast<std::size_t>(largest)]);
}

void TrainingRun::finish() {
  do_together([this] {
    save_last();
    report_memory();
    runner_->agree_to_end(progress_.steps);
  });
  report_end();
}

void TrainingRun::save_last() {
  // All save again what one of them could not, once nobody expects a part of the attempt before.
  const bool unsaved = saved_step_ != progress_.steps;
  if (communicator().all_reduce_max(unsaved ? 1.0 : 0.0) > 0.0) {
    wait_for_saves();
    survive_failed_save([this] { checkpoints_->wait(); });
    communicator().barrier();
    checkpoints_->clear_attempt(progress_.steps);
    communicator().barrier();
    save();
  }
  wait_for_saves();
  checkpoints_->wait();
  report_saves();
  communicator().barrier();
}

void TrainingRun::report_end() {
  if (channels_ && !channels_->summary().empty()) {
    outputs_.note("channels: " + channels_->summary());
  }
  std::string text =
      is_last() ? "finished " + format_number_of(progress_.steps, "step")
                : fmt::format("ended at step {} of {}", progress_.steps, config_.schedule.steps);
  if (last_validation_) {
    text += fmt::format("; validation loss {:.4f}, perplexity {:.2f}, {:.3f} bits per byte",
                        last_validation_->loss(), last_validation_->perplexity(),
                        last_validation_->bits_per_byte(tokens_per_byte(*data_.validation())));
  }
  outputs_.note(text);
  if (!data_.damage().empty()) {
    outputs_.warning("trained on damaged data: " + data_.damage(), communicator().rank());
  }
}

void TrainingRun::end_by(const PeerFailure& failure) {
  try {
    checkpoints_->wait();
  } catch (const std::runtime_error&) {
    // It was given up; those before it are looked for.
  }
  // Known to everybody now, whoever noticed it first.
  const std::vector<int> dead = communicator().dead_ranks();
  const auto saved = find_checkpoints(checkpoints_->directory()).complete;
  throw std::runtime_error(fmt::format(
      "{}; the run ends after step {}; {}\nhint: a process or the network has failed; `chaski "
      "train CONFIG --resume auto` goes on from the last checkpoint",
      dead.empty() ? first_line(failure.what())
                   : fmt::format("rank {} died", fmt::join(dead, ", ")),
      progress_.steps,
      saved.empty() ? "no checkpoint was saved"
                    : fmt::format("the last checkpoint is of step {}", saved.front().step)));
}

}  // namespace chaski
