#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fault/checkpoint/file_system.h"

namespace chaski {

struct SkippedCheckpoint {
  std::string path;
  std::string reason;  // one line
};
// A checkpoint directory whose completion marker is readable.
struct CheckpointListing {
  std::string path;
  std::int64_t step = 0;
  std::int64_t generation = 0;  // counts the saves of a run: the order in time, whatever the clock
  std::uint64_t bytes = 0;      // of all shards
  // Newer ones that were passed over, where this one was looked for as the newest intact.
  std::vector<SkippedCheckpoint> skipped;
};
struct FoundCheckpoints {
  std::vector<CheckpointListing> complete;  // newest first
  std::vector<SkippedCheckpoint> skipped;   // without a readable marker, or shards missing
};

// How much of a checkpoint is looked at: the marker and the sizes, or every byte (checksums).
enum class Verification { sizes, checksums };

// The checkpoints in a directory `<output>/checkpoints`; none when it does not exist. Reads markers
// and sizes only. Throws std::runtime_error when the directory cannot be read.
FoundCheckpoints find_checkpoints(const std::string& directory,
                                  FileSystem& files = posix_file_system());

struct ResolvedCheckpoint {
  std::optional<CheckpointListing> checkpoint;  // none: there is nothing to resume from
  std::vector<SkippedCheckpoint> skipped;       // newer ones that are incomplete or damaged
};
// What `--resume` means. "auto": the newest checkpoint of `directory` that is complete and intact
// (every byte is read), none when there is no such. A path: as find_checkpoint().
ResolvedCheckpoint resolve_checkpoint(const std::string& directory, const std::string& what,
                                      FileSystem& files = posix_file_system());

// The checkpoint that `path` names: a checkpoint directory, or the newest intact one of a run's
// output directory, its `checkpoints` directory or its `latest` file. Throws std::invalid_argument
// when `path` is nothing of these, std::runtime_error naming the damage when none is intact.
CheckpointListing find_checkpoint(const std::string& path, Verification verification,
                                  FileSystem& files = posix_file_system());

// The reason why the checkpoint in this directory cannot be used; none when it is intact.
std::optional<std::string> damage_of(const std::string& path, Verification verification,
                                     FileSystem& files = posix_file_system());

// To be called by one process at the start of a run, after it has got the OutputLock: removes what
// killed saves left behind (by our name pattern only) and undoes half-done replacements.
// Returns the names of what it removed.
std::vector<std::string> clean_up_checkpoints(const std::string& directory,
                                              FileSystem& files = posix_file_system());

}  // namespace chaski
