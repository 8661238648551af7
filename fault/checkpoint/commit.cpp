#include "fault/checkpoint/commit.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <numeric>
#include <optional>
#include <thread>

#include "fault/checkpoint/directory.h"

namespace chaski {
namespace {

std::int64_t next_generation(FileSystem& files, const std::string& directory) {
  const FoundCheckpoints found = find_checkpoints(directory, files);
  return found.complete.empty() ? 1 : found.complete.front().generation + 1;
}

constexpr std::uint64_t kMaxReportBytes = 4096;
constexpr const char* kFailedSuffix = ".failed";  // of a report: the reason why there is none

// A directory that vanishes is made again by whoever writes next, without what others wrote.
void require_written(FileSystem& files, const std::string& unfinished, const ShardInfo& shard) {
  const std::string path = join_path(unfinished, shard.file);
  const std::optional<FileStatus> status = files.status(path);
  if (!status || status->bytes != shard.bytes)
    throw std::runtime_error(fmt::format("{}: vanished after it was written", path));
}

// None: it is not there yet.
std::optional<ShardInfo> find_report(FileSystem& files, const std::string& unfinished, int shard,
                                     int num_shards) {
  const std::string path = join_path(unfinished, shard_report_name(shard, num_shards));
  const std::string failure = path + kFailedSuffix;
  if (files.status(failure)) {
    throw std::runtime_error(fmt::format("{} could not be written: {}",
                                         shard_file_name(shard, num_shards),
                                         read_whole_file(files, failure, kMaxReportBytes)));
  }
  if (!files.status(path)) return std::nullopt;
  const ShardInfo info = decode_shard_report(read_whole_file(files, path, kMaxReportBytes));
  if (info.file != shard_file_name(shard, num_shards))
    throw std::runtime_error(fmt::format("{}: is the report of {}", path, info.file));
  return info;
}

// Reports, and what writers left that were interrupted.
void remove_all_but(FileSystem& files, const std::string& unfinished,
                    const std::vector<ShardInfo>& shards) {
  for (const std::string& name : files.list(unfinished)) {
    const bool stays = std::any_of(shards.begin(), shards.end(),
                                   [&](const ShardInfo& shard) { return shard.file == name; });
    if (!stays) remove_tree(files, join_path(unfinished, name));
  }
}

// Deletes a checkpoint so that at no moment a part of it looks like a whole.
void delete_checkpoint(FileSystem& files, const std::string& directory, const std::string& path,
                       std::int64_t step) {
  const std::string doomed = unfinished_path(directory, step);
  remove_tree(files, doomed);
  files.rename(path, doomed);
  files.sync_directory(directory);
  remove_tree(files, doomed);
}

}  // namespace

std::string unfinished_path(const std::string& directory, std::int64_t step) {
  return join_path(directory, checkpoint_name(step) + kUnfinishedSuffix);
}

std::vector<ShardInfo> gather_shards(FileSystem& files, const std::string& unfinished,
                                     const ShardInfo& own, int num_shards,
                                     const ShardPatience& patience) {
  const auto deadline =
      std::chrono::steady_clock::now() +
      std::chrono::milliseconds(static_cast<std::int64_t>(patience.timeout_seconds * 1e3));
  std::vector<ShardInfo> shards(static_cast<std::size_t>(num_shards));
  shards.front() = own;
  std::vector<int> missing(static_cast<std::size_t>(num_shards - 1));
  std::iota(missing.begin(), missing.end(), 1);
  while (true) {
    // All of them each time: whichever fails, nobody waits for another.
    std::erase_if(missing, [&](int shard) {
      const std::optional<ShardInfo> found = find_report(files, unfinished, shard, num_shards);
      if (found) shards[static_cast<std::size_t>(shard)] = *found;
      return found.has_value();
    });
    if (missing.empty()) break;
    require_written(files, unfinished, own);
    patience.meanwhile();
    const std::string path = join_path(unfinished, shard_report_name(missing.front(), num_shards));
    if (patience.abandoned)
      throw std::runtime_error(fmt::format("{}: is not waited for any longer", path));
    if (std::chrono::steady_clock::now() > deadline)
      throw std::runtime_error(fmt::format("{}: was not written in time", path));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (const ShardInfo& shard : shards) require_written(files, unfinished, shard);
  remove_all_but(files, unfinished, shards);
  return shards;
}

void report_shard(FileSystem& files, const std::string& unfinished, const ShardInfo& info,
                  int shard, int num_shards) {
  write_file_by_rename(files, join_path(unfinished, shard_report_name(shard, num_shards)),
                       encode_shard_report(info));
}

void report_failed_shard(FileSystem& files, const std::string& unfinished,
                         const std::string& reason, int shard, int num_shards) noexcept {
  const std::string name = shard_report_name(shard, num_shards) + kFailedSuffix;
  try {
    write_file_by_rename(files, join_path(unfinished, name), reason.substr(0, reason.find('\n')));
  } catch (const std::exception&) {
    // Where nothing can be written, the one that waits finds its own shard gone, or gives up later.
  }
}

std::string commit_checkpoint(FileSystem& files, const std::string& directory, std::int64_t step,
                              const std::vector<ShardInfo>& shards) {
  const CompletionMarker marker{step, next_generation(files, directory), shards};
  const std::string unfinished = unfinished_path(directory, step);
  const std::string path = join_path(directory, checkpoint_name(step));
  const std::string replaced = path + kReplacedSuffix;
  files.sync_directory(unfinished);
  if (files.status(path)) {
    // The same step again, after resuming from before it: the one that is there stays findable
    // under another name until the new one is complete.
    remove_tree(files, replaced);
    files.rename(path, replaced);
    files.sync_directory(directory);
  }
  files.rename(unfinished, path);
  files.sync_directory(directory);
  write_file_atomically(files, join_path(path, kMarkerName), encode_marker(marker));
  write_file_atomically(files, join_path(directory, kLatestName), checkpoint_name(step) + "\n");
  remove_tree(files, replaced);
  return path;
}

void settle_replaced(FileSystem& files, const std::string& directory, std::int64_t step) {
  const std::string path = join_path(directory, checkpoint_name(step));
  const std::string replaced = path + kReplacedSuffix;
  if (!files.status(replaced)) return;
  if (!damage_of(path, Verification::sizes, files) ||
      damage_of(replaced, Verification::sizes, files))
    return remove_tree(files, replaced);
  remove_tree(files, path);
  files.rename(replaced, path);
  files.sync_directory(directory);
}

void abandon_checkpoint(FileSystem& files, const std::string& directory,
                        std::int64_t step) noexcept {
  try {
    remove_tree(files, unfinished_path(directory, step));
    settle_replaced(files, directory, step);
    const std::string path = join_path(directory, checkpoint_name(step));
    if (files.status(path) && !files.status(join_path(path, kMarkerName))) remove_tree(files, path);
  } catch (const std::exception&) {
    // The save's own error is what the user must see; clean_up_checkpoints() does the rest.
  }
}

void delete_old_checkpoints(FileSystem& files, const std::string& directory, std::int64_t keep,
                            std::int64_t keep_every) {
  if (keep <= 0) return;
  const FoundCheckpoints found = find_checkpoints(directory, files);
  for (std::size_t i = static_cast<std::size_t>(keep); i < found.complete.size(); ++i) {
    const CheckpointListing& listing = found.complete[i];
    const bool milestone = keep_every > 0 && listing.step % keep_every == 0;
    if (!milestone) delete_checkpoint(files, directory, listing.path, listing.step);
  }
}

}  // namespace chaski
