#include "app/training/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fmt/core.h>
#include <span>
#include <stdexcept>

#include "app/console/human_format.h"
#include "app/job/job.h"
#include "app/job/process_memory.h"
#include "app/plan/memory.h"
#include "app/plan/plan.h"

namespace chaski {

void TrainingRun::run() {
  if (is_root() && config_.log.console != ConsoleMode::off) print_start();
  const std::int64_t steps = config_.schedule.steps;
  std::int64_t end = steps;
  if (options_.max_steps > 0) end = std::min(end, first_step_ + options_.max_steps);
  if (first_step_ >= end) {
    if (is_root()) {
      console_->note(fmt::format("nothing to do: step {} of {} is done", first_step_, steps));
    }
    return;
  }
  if (is_root()) start_verification();
  std::int64_t step = first_step_;
  bool stopped = false;
  while (step < end && !stopped) stopped = advance(step++);
  finish(step);
}

void TrainingRun::upload_batches(std::int64_t step) {
  const auto data_step = static_cast<std::uint64_t>(options_.overfit_batch ? 0 : step);
  for (int i = 0; i < layout_.micro_batches; ++i) {
    batches_[i].upload(loader_->get(data_step, i), config_.data.reset_at_documents);
  }
}

BatchSource TrainingRun::uploaded_batches() const {
  return [this](int, int index) { return batches_[index].micro_batch(); };
}

bool TrainingRun::advance(std::int64_t step) {
  const auto start = std::chrono::steady_clock::now();
  const double learning_rate = schedule_.at(step);
  upload_batches(step);
  const StepOutcome outcome = engine_->run(step, uploaded_batches(), tokens_per_step(),
                                           learning_rate, stop_signal_.requested());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;

  const std::int64_t updates = step + 1;
  if (outcome.verdict.non_finite) handle_nonfinite(step);
  if (outcome.verdict.commit) skipped_in_a_row_ = 0;
  std::optional<EvaluationResult> validation;
  const std::int64_t every = config_.evaluation.every;
  const bool last = updates == config_.schedule.steps;
  if (validation_data_ != nullptr && (last || (every > 0 && updates % every == 0))) {
    validation = validate(updates);
  }
  record(step, outcome, elapsed.count(), learning_rate, validation,
         observe_channels(updates, outcome.verdict.commit));
  if (config_.checkpoint.every > 0 && updates % config_.checkpoint.every == 0) try_save(updates);
  report_saves();
  report_data_damage();
  report_refused_graphs();
  if (outcome.verdict.stop && is_root()) {
    console_->note(fmt::format("asked to stop: saving step {} and ending", updates));
  }
  return outcome.verdict.stop;
}

void TrainingRun::handle_nonfinite(std::int64_t step) {
  const std::string where = engine_->locate_nonfinite(uploaded_batches(), tokens_per_step());
  const std::string message =
      fmt::format("step {} is not finite{}", step + 1, where.empty() ? "" : ": " + where);
  ++skipped_in_a_row_;
  const bool stop = config_.run.nonfinite == NonfinitePolicy::stop;
  if (stop || skipped_in_a_row_ > config_.run.max_skipped_steps) {
    // The weights are those of the last good step; everybody leaves with rank 0's message.
    const std::string shared = run_on_root(communicator_, [&] { return message; });
    throw std::runtime_error(fmt::format(
        "{}{}\nhint: lower optimizer.lr, or resume from an earlier checkpoint; the step changed "
        "no weight",
        shared,
        stop ? ""
             : fmt::format("; the {} before it {} skipped",
                           format_number_of(skipped_in_a_row_ - 1, "step"),
                           skipped_in_a_row_ == 2 ? "was" : "were")));
  }
  if (is_root()) console_->warning(message + "; the step is skipped");
}

void TrainingRun::record(std::int64_t step, const StepOutcome& outcome, double seconds,
                         double learning_rate, const std::optional<EvaluationResult>& validation,
                         const nlohmann::ordered_json& channels) {
  if (!is_root()) return;
  const std::int64_t updates = step + 1;
  const double rate = static_cast<double>(tokens_per_step()) / seconds;
  // The first step also allocates and packs: it says little about the next ones.
  seconds_per_step_ = step <= first_step_ + 1 ? seconds : 0.9 * seconds_per_step_ + 0.1 * seconds;
  if (metrics_ != nullptr) {
    StepMetrics entry;
    entry.step = updates;
    entry.loss = outcome.loss;
    entry.lr = learning_rate;
    entry.grad_norm = outcome.gradient_norm;
    entry.tokens = updates * tokens_per_step();
    entry.tokens_per_second = rate;
    entry.seconds = seconds;
    entry.extras["epoch"] = loader_->epoch(static_cast<std::uint64_t>(step));
    if (!outcome.verdict.commit) entry.extras["skipped"] = true;
    if (!channels.empty()) entry.extras["channels"] = channels;
    if (validation) {
      entry.extras["validation_loss"] = validation->loss();
      entry.extras["validation_bits_per_byte"] =
          validation->bits_per_byte(tokens_per_byte(*validation_data_));
    }
    metrics_->write(entry);
  }
  if (!is_logged(updates)) return;
  StepLine line;
  line.step = updates;
  line.total_steps = config_.schedule.steps;
  line.loss = outcome.loss;
  line.lr = learning_rate;
  line.grad_norm = outcome.gradient_norm;
  line.tokens_per_second = rate;
  line.ceiling_share = ceiling_share(rate);
  line.memory_bytes = resident_bytes();
  line.eta_seconds = seconds_per_step_ * static_cast<double>(config_.schedule.steps - updates);
  console_->step(line);
}

bool TrainingRun::is_logged(std::int64_t updates) const {
  return updates == first_step_ + 1 || updates == config_.schedule.steps ||
         updates % config_.log.every == 0;
}

nlohmann::ordered_json TrainingRun::observe_channels(std::int64_t updates, bool committed) {
  if (!channels_) return {};
  // That of a skipped step is of numbers that are none, and of a forward pass made twice.
  const std::vector<ChannelUse> use = engine_->stage().take_channel_use();
  if (committed) channels_->add(engine_->stage().range(), use, updates);
  if (!is_logged(updates)) return {};
  communicator_.all_reduce_sum(channels_->sums());
  communicator_.all_reduce_max(channels_->last_selected());
  return channels_->report(updates);
}

double TrainingRun::ceiling_share(double tokens_per_second) {
  const double gflops = 1e-9 * tokens_per_second *
                        config_.model.llama.training_flops_per_token(config_.data.sequence_length);
  // What was measured for half a second at the start was too little where the machine has become
  // faster since, because another program has ended or the processor's clock has risen.
  gemm_ceiling_ = std::max(gemm_ceiling_, gflops);
  return gflops / gemm_ceiling_;
}

EvaluationResult TrainingRun::validate(std::int64_t updates) {
  const auto start = std::chrono::steady_clock::now();
  const EvaluationSetting setting{
      communicator_, engine_->executor(),      engine_->roster(),           engine_->slot(),
      batches_[0],   engine_->rows_per_pass(), config_.data.sequence_length};
  const EvaluationResult result =
      evaluate(setting, validation_data_, config_.evaluation.tokens, nullptr);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  last_validation_ = result;
  if (is_root()) {
    ValidationLine line;
    line.step = updates;
    line.loss = result.loss();
    line.bits_per_byte = result.bits_per_byte(tokens_per_byte(*validation_data_));
    line.tokens = result.tokens;
    line.seconds = elapsed.count();
    console_->validation(line);
  }
  return result;
}

void TrainingRun::save(std::int64_t updates) {
  if (writer_ != nullptr) {
    writer_->save(metadata(updates), engine_->stage().parameters(), engine_->optimizer().state());
  }
  saved_step_ = updates;
}

void TrainingRun::try_save(std::int64_t updates) {
  if (writer_ != nullptr) survive_failed_save([this] { writer_->wait(); });
  survive_failed_save([&] { save(updates); });
}

bool TrainingRun::survive_failed_save(const std::function<void()>& work) const {
  try {
    work();
    return true;
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    const std::string text = what.substr(0, what.find('\n')) + "; training goes on";
    if (is_root()) {
      console_->warning(text);
    } else {
      const std::string line =
          fmt::format("chaski: warning: rank {}: {}\n", communicator_.rank(), text);
      std::fputs(line.c_str(), stderr);
    }
    return false;
  }
}

void TrainingRun::report_saves() {
  if (writer_ == nullptr) return;
  if (!survive_failed_save([this] { writer_->check(); })) saved_step_ = kNothingSaved;
  if (!is_root()) return;
  for (const SaveReport& report : writer_->take_reports()) {
    // Even where older ones could not be deleted after it.
    saved_step_ = std::max(saved_step_, report.step);
    if (report.directory_vanished) {
      console_->warning(fmt::format("{} had vanished and was made again",
                                    config_.checkpoint_directory().string()));
    }
    console_->note(fmt::format("saved {} ({:.1f} MiB in {:.2f} s, training waited {:.2f} s)",
                               report.path, static_cast<double>(report.bytes) / (1 << 20),
                               report.total_seconds, report.stall_seconds));
  }
}

void TrainingRun::report_refused_graphs() {
  if (told_of_graphs_ || !is_root() || device_->graph_refusal().empty()) return;
  told_of_graphs_ = true;
  console_->warning(
      fmt::format("the GPU's ops are queued one by one: {}", device_->graph_refusal()));
}

void TrainingRun::start_verification() {
  std::vector<std::shared_ptr<const TokenStream>> streams = {training_data_->shared_stream()};
  if (validation_data_ != nullptr) streams.push_back(validation_data_);
  data_verification_ = std::make_unique<BackgroundVerification>(std::move(streams));
}

void TrainingRun::report_data_damage() {
  if (data_verification_ == nullptr) return;
  try {
    data_verification_->check();
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    data_damage_ = what.substr(0, what.find('\n'));
    console_->warning(data_damage_ + "; training goes on with what it holds");
  }
}

void TrainingRun::report_memory() {
  const TrainConfig settled = settle_device(config_, device_choice_);
  const RankMemory planned = plan_memory(*device_, settled, communicator_.size(), {})
                                 .at(static_cast<std::size_t>(communicator_.rank()));
  const MemoryUsage& taken = device_->memory();
  std::int64_t peak = 0;
  bool as_planned = true;
  std::string parts;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    const std::int64_t bytes = taken.peak(category);
    const std::int64_t expected = planned.device_bytes(category);
    peak += bytes;
    as_planned = as_planned && bytes == expected;
    if (bytes == 0 && expected == 0) continue;
    parts +=
        fmt::format("{}{} {}", parts.empty() ? "" : ", ", name_of(category), format_bytes(bytes));
    if (bytes != expected) parts += fmt::format(" (planned {})", format_bytes(expected));
  }
  std::vector<std::int64_t> peaks(static_cast<std::size_t>(communicator_.size()));
  peaks[static_cast<std::size_t>(communicator_.rank())] = peak;
  communicator_.all_reduce_sum(std::span<std::int64_t>(peaks));
  const std::string plan =
      as_planned ? "as planned" : format_bytes(planned.device_total()) + " planned";
  const std::vector<std::string> lines = communicator_.gather(
      fmt::format("{} at most, {}: {}; the whole process {}", format_bytes(peak), plan, parts,
                  format_bytes(peak_resident_bytes())),
      0);
  if (!is_root()) return;
  const auto largest = std::max_element(peaks.begin(), peaks.end()) - peaks.begin();
  const std::string whose = peaks.size() == 1 ? "" : fmt::format(" of rank {}", largest);
  console_->note("memory" + whose + ": " + lines[static_cast<std::size_t>(largest)]);
}

void TrainingRun::finish(std::int64_t updates) {
  // All save again what one of them could not, once nobody expects a part of the attempt before.
  if (communicator_.all_reduce_max(saved_step_ != updates ? 1.0 : 0.0) > 0.0) {
    if (writer_ != nullptr) survive_failed_save([this] { writer_->wait(); });
    communicator_.barrier();
    if (writer_ != nullptr) writer_->clear_attempt(updates);
    communicator_.barrier();
    save(updates);
  }
  if (writer_ != nullptr) writer_->wait();
  report_saves();
  communicator_.barrier();
  report_memory();
  if (!is_root()) return;
  if (channels_ && !channels_->summary().empty())
    console_->note("channels: " + channels_->summary());
  std::string text = updates == config_.schedule.steps
                         ? "finished " + format_number_of(updates, "step")
                         : fmt::format("ended at step {} of {}", updates, config_.schedule.steps);
  if (last_validation_) {
    text += fmt::format("; validation loss {:.4f}, perplexity {:.2f}, {:.3f} bits per byte",
                        last_validation_->loss(), last_validation_->perplexity(),
                        last_validation_->bits_per_byte(tokens_per_byte(*validation_data_)));
  }
  console_->note(text);
  if (!data_damage_.empty()) console_->warning("trained on damaged data: " + data_damage_);
}

}  // namespace chaski
