#include "fault/checkpoint/directory.h"

#include <algorithm>
#include <fmt/format.h>

#include "fault/checkpoint/commit.h"
#include "fault/checkpoint/marker.h"

namespace chaski {
namespace {

constexpr const char* kDamageHint =
    "\nhint: name the run's directory instead: the newest intact checkpoint is then used";

bool is_directory(FileSystem& files, const std::string& path) {
  const auto status = files.status(path);
  return status && status->is_directory;
}

std::string base_name(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path;
  const std::size_t slash = path.find_last_of('/', end);
  const std::size_t begin = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(begin, end + 1 - begin);
}

bool is_checkpoint_name(const std::string& name) {
  return step_in_name(name) || step_in_name(name, kReplacedSuffix);
}

void check_shard(FileSystem& files, const std::string& checkpoint, const ShardInfo& shard,
                 Verification verification) {
  const auto status = files.status(join_path(checkpoint, shard.file));
  if (!status) throw std::runtime_error(fmt::format("its file {} is missing", shard.file));
  if (status->bytes != shard.bytes)
    throw std::runtime_error(fmt::format("its file {} has {} bytes instead of {}", shard.file,
                                         status->bytes, shard.bytes));
  if (verification == Verification::sizes) return;
  const auto file = files.open(join_path(checkpoint, shard.file));
  if (checksum_of_file(*file, shard.bytes) != shard.checksum)
    throw std::runtime_error(fmt::format("its file {} is damaged (checksum)", shard.file));
}

// Throws std::runtime_error with the reason when the checkpoint cannot be used.
CheckpointListing examine(FileSystem& files, const std::string& path, Verification verification) {
  const CompletionMarker marker = read_marker(files, path);
  CheckpointListing listing{path, marker.step, marker.generation, 0, {}};
  for (const ShardInfo& shard : marker.shards) {
    check_shard(files, path, shard, verification);
    listing.bytes += shard.bytes;
  }
  return listing;
}

// The newest intact checkpoint of a `checkpoints` directory; none when there is no checkpoint.
std::optional<CheckpointListing> newest(FileSystem& files, const std::string& directory,
                                        Verification verification,
                                        std::vector<SkippedCheckpoint>& skipped) {
  FoundCheckpoints found = find_checkpoints(directory, files);
  skipped = std::move(found.skipped);
  for (const CheckpointListing& listing : found.complete) {
    const auto damage = damage_of(listing.path, verification, files);
    if (!damage) return listing;
    skipped.push_back({listing.path, *damage});
  }
  return std::nullopt;
}

bool looks_like_checkpoint(FileSystem& files, const std::string& path) {
  return step_in_name(base_name(path)) || files.status(join_path(path, kMarkerName));
}

bool holds_checkpoints(FileSystem& files, const std::string& path) {
  const std::vector<std::string> names = files.list(path);
  return std::any_of(names.begin(), names.end(), is_checkpoint_name);
}

CheckpointListing newest_or_throw(FileSystem& files, const std::string& directory,
                                  Verification verification) {
  std::vector<SkippedCheckpoint> skipped;
  if (auto listing = newest(files, directory, verification, skipped)) {
    listing->skipped = std::move(skipped);
    return *listing;
  }
  if (skipped.empty())
    throw std::invalid_argument(fmt::format("{}: holds no checkpoint", directory));
  throw std::runtime_error(
      fmt::format("{}: holds no usable checkpoint; {} {}\nhint: saves that were interrupted or not "
                  "copied as a whole cannot be used; begin anew, or copy the checkpoints again",
                  directory, base_name(skipped.front().path), skipped.front().reason));
}

CheckpointListing find_in_directory(FileSystem& files, const std::string& path,
                                    Verification verification) {
  if (looks_like_checkpoint(files, path)) {
    try {
      return examine(files, path, verification);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(
          fmt::format("{}: the checkpoint is damaged: {}{}", path, error.what(), kDamageHint));
    }
  }
  const std::string nested = join_path(path, "checkpoints");
  if (is_directory(files, nested)) return newest_or_throw(files, nested, verification);
  if (holds_checkpoints(files, path)) return newest_or_throw(files, path, verification);
  throw std::invalid_argument(
      fmt::format("{}: holds no checkpoint (expected a directory step-XXXXXXXX, or a run's output "
                  "directory)",
                  path));
}

// A directory without a marker, with nothing in it but what a save writes before the marker.
bool is_unfinished(FileSystem& files, const std::string& path) {
  const std::vector<std::string> names = files.list(path);
  return std::all_of(names.begin(), names.end(), [](const std::string& name) {
    return is_shard_file_name(name) || name == std::string(kMarkerName) + kUnfinishedSuffix;
  });
}

bool is_leftover(FileSystem& files, const std::string& directory, const std::string& name) {
  if (name == std::string(kLatestName) + kUnfinishedSuffix) return true;
  const std::string path = join_path(directory, name);
  if (!is_directory(files, path)) return false;
  return step_in_name(name, kUnfinishedSuffix) ||
         (step_in_name(name) && is_unfinished(files, path));
}

}  // namespace

std::optional<std::string> damage_of(const std::string& path, Verification verification,
                                     FileSystem& files) {
  try {
    examine(files, path, verification);
    return std::nullopt;
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

FoundCheckpoints find_checkpoints(const std::string& directory, FileSystem& files) {
  FoundCheckpoints found;
  if (!is_directory(files, directory)) return found;
  for (const std::string& name : files.list(directory)) {
    const std::string path = join_path(directory, name);
    if (!is_checkpoint_name(name) || !is_directory(files, path)) continue;
    try {
      found.complete.push_back(examine(files, path, Verification::sizes));
    } catch (const std::runtime_error& error) {
      found.skipped.push_back({path, error.what()});
    }
  }
  std::sort(found.complete.begin(), found.complete.end(),
            [](const CheckpointListing& a, const CheckpointListing& b) {
              return std::pair(a.generation, a.step) > std::pair(b.generation, b.step);
            });
  return found;
}

CheckpointListing find_checkpoint(const std::string& path, Verification verification,
                                  FileSystem& files) {
  const auto status = files.status(path);
  if (!status) throw std::invalid_argument(fmt::format("{}: no such checkpoint", path));
  if (status->is_directory) return find_in_directory(files, path, verification);
  const std::string directory = parent_directory(path);
  if (base_name(path) == kLatestName) return newest_or_throw(files, directory, verification);
  if (is_shard_file_name(base_name(path)) || base_name(path) == kMarkerName)
    return find_in_directory(files, directory, verification);
  throw std::invalid_argument(fmt::format("{}: is no checkpoint (expected a directory)", path));
}

ResolvedCheckpoint resolve_checkpoint(const std::string& directory, const std::string& what,
                                      FileSystem& files) {
  ResolvedCheckpoint resolved;
  if (what == "auto")
    resolved.checkpoint = newest(files, directory, Verification::checksums, resolved.skipped);
  else
    resolved.checkpoint = find_checkpoint(what, Verification::checksums, files);
  return resolved;
}

std::vector<std::string> clean_up_checkpoints(const std::string& directory, FileSystem& files) {
  std::vector<std::string> removed;
  if (!is_directory(files, directory)) return removed;
  for (const std::string& name : files.list(directory))
    if (const auto step = step_in_name(name, kReplacedSuffix)) {
      removed.push_back(name);
      settle_replaced(files, directory, *step);
    }
  for (const std::string& name : files.list(directory)) {
    const std::string path = join_path(directory, name);
    const std::string stray = join_path(path, std::string(kMarkerName) + kUnfinishedSuffix);
    if (is_leftover(files, directory, name)) {
      remove_tree(files, path);
      removed.push_back(name);
    } else if (step_in_name(name) && files.status(stray)) {
      files.remove_file(stray);
    }
  }
  files.sync_directory(directory);
  return removed;
}

}  // namespace chaski
