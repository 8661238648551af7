#include "app/training/run_checkpoints.h"

#include <algorithm>
#include <exception>
#include <fmt/core.h>
#include <stdexcept>
#include <utility>

#include "fault/checkpoint/directory.h"

namespace chaski {

std::string choose_checkpoint(const TrainConfig& config, const CheckpointChoice& choice) {
  const std::string directory = config.checkpoint_directory().string();
  for (const std::string& name : clean_up_checkpoints(directory)) {
    fmt::print(stderr, "chaski: warning: removed {}/{}, which an interrupted save left behind\n",
               directory, name);
  }
  if (choice.resume.empty()) {
    if (!find_checkpoints(directory).complete.empty()) {
      throw std::invalid_argument(fmt::format(
          "{} holds checkpoints of an earlier run\nhint: go on with --resume auto, or name "
          "another directory by --set run.output=...",
          directory));
    }
    return choice.init_from.empty()
               ? ""
               : find_checkpoint(choice.init_from, Verification::checksums).path;
  }
  const ResolvedCheckpoint resolved = resolve_checkpoint(directory, choice.resume);
  for (const SkippedCheckpoint& skipped : resolved.skipped) {
    fmt::print(stderr, "chaski: warning: skipped {}: {}\n", skipped.path, skipped.reason);
  }
  if (!resolved.checkpoint && !resolved.skipped.empty()) {
    throw std::runtime_error(
        fmt::format("{} holds checkpoints, but none is intact\nhint: name another checkpoint by "
                    "--resume PATH, "
                    "or another directory by --set run.output=... to begin anew",
                    directory));
  }
  return resolved.checkpoint ? resolved.checkpoint->path : "";
}

RunCheckpoints::RunCheckpoints(const TrainConfig& config, int copy_threads)
    : config_(config.checkpoint),
      directory_(config.checkpoint_directory().string()),
      copy_threads_(copy_threads) {}

void RunCheckpoints::adopt(const Membership& membership, HostedModel& model) {
  std::map<int, Shard, std::greater<>> shards;
  for (const auto& stage : model.stages()) {
    if (!membership.writes(stage->stage)) continue;
    Shard& shard = shards[stage->stage];
    const auto known = shards_.find(stage->stage);
    if (known != shards_.end()) shard = std::move(known->second);
    shard.stage = stage.get();
    if (shard.writer != nullptr) continue;
    CheckpointWriterOptions options;
    options.keep = config_.keep;
    options.keep_every = config_.keep_every;
    options.async = config_.async;
    options.copy_threads = copy_threads_;
    options.shard = stage->stage;
    options.num_shards = membership.roster().num_stages();
    options.while_waiting = [&membership] { membership.communicator().throw_if_peer_died(); };
    shard.writer = std::make_unique<CheckpointWriter>(directory_, options);
  }
  shards_ = std::move(shards);
}

template <typename Work>
void RunCheckpoints::for_each(const Work& work) {
  std::exception_ptr first;
  for (auto& [stage, shard] : shards_) {
    try {
      work(shard);
    } catch (const std::exception&) {
      if (first == nullptr) first = std::current_exception();
    }
  }
  if (first != nullptr) std::rethrow_exception(first);
}

void RunCheckpoints::save(const CheckpointMetadata& metadata) {
  for_each([&](Shard& shard) {
    shard.writer->save(metadata, shard.stage->model->parameters(), shard.stage->optimizer->state());
  });
}

void RunCheckpoints::before_update() {
  for_each([](Shard& shard) { shard.writer->before_update(); });
}

void RunCheckpoints::wait() {
  for_each([](Shard& shard) { shard.writer->wait(); });
}

void RunCheckpoints::check() {
  for_each([](Shard& shard) { shard.writer->check(); });
}

bool RunCheckpoints::busy() const {
  return std::any_of(shards_.begin(), shards_.end(),
                     [](const auto& shard) { return shard.second.writer->busy(); });
}

void RunCheckpoints::clear_attempt(std::int64_t step) noexcept {
  for (auto& [stage, shard] : shards_) shard.writer->clear_attempt(step);
}

void RunCheckpoints::abandon() noexcept {
  for (auto& [stage, shard] : shards_) shard.writer->abandon();
}

std::vector<SaveReport> RunCheckpoints::take_reports() {
  std::vector<SaveReport> committed;
  for (auto& [stage, shard] : shards_) {
    std::vector<SaveReport> reports = shard.writer->take_reports();
    if (stage == 0) committed = std::move(reports);
  }
  return committed;
}

}  // namespace chaski
