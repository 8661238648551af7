#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fault/checkpoint/file_system.h"
#include "fault/checkpoint/shard.h"

namespace chaski {

// Names in a `checkpoints` directory.
inline constexpr const char* kMarkerName = "COMPLETE";
inline constexpr const char* kLatestName = "latest";
inline constexpr const char* kUnfinishedSuffix = ".tmp";  // being written, or being deleted
inline constexpr const char* kReplacedSuffix = ".old";    // gives way to a new one of its step
std::string checkpoint_name(std::int64_t step);           // "step-00000100"
// The step in "step-00000100" followed by `suffix`; none for any other name.
std::optional<std::int64_t> step_in_name(const std::string& name, const std::string& suffix = "");

// The file that makes a checkpoint count, written when all else is durable: what the checkpoint
// consists of, and a checksum of that.
struct CompletionMarker {
  std::int64_t step = 0;
  std::int64_t generation = 0;
  std::vector<ShardInfo> shards;
};
std::string encode_marker(const CompletionMarker& marker);
// Throws std::runtime_error when `text` is not exactly what encode_marker() makes.
CompletionMarker decode_marker(const std::string& text);

// What a shard's writer leaves for the one that commits.
std::string shard_report_name(int shard, int num_shards);
std::string encode_shard_report(const ShardInfo& info);
ShardInfo decode_shard_report(const std::string& text);

// Reads the marker of a checkpoint directory. Throws std::runtime_error with the reason.
CompletionMarker read_marker(FileSystem& files, const std::string& checkpoint);

}  // namespace chaski
