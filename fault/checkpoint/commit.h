#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fault/checkpoint/file_system.h"
#include "fault/checkpoint/marker.h"

namespace chaski {

// The steps of a save around the writing of shards. What a failure at any moment leaves behind is
// either ignored or completed by resolve_checkpoint() and clean_up_checkpoints().

// The temporary directory of a save. It is made by whoever writes a shard first.
std::string unfinished_path(const std::string& directory, std::int64_t step);

// How long the other shards are waited for.
struct ShardPatience {
  double timeout_seconds = 0.0;
  const std::atomic<bool>& abandoned;  // set by another thread: not any longer
  std::function<void()> meanwhile;     // now and then; ends the waiting by what it throws
};

// Waits for the reports of the other shards' writers, leaves nothing but shards in the directory
// and returns them in order. Throws std::runtime_error naming the shard when its writer has failed,
// when what was written is gone, and when patience ends.
std::vector<ShardInfo> gather_shards(FileSystem& files, const std::string& unfinished,
                                     const ShardInfo& own, int num_shards,
                                     const ShardPatience& patience);
// Tells the committing process that this shard is durable. The report itself need not be.
void report_shard(FileSystem& files, const std::string& unfinished, const ShardInfo& info,
                  int shard, int num_shards);
// Tells it that there will be none, and the reason's first line, where the directory still exists.
void report_failed_shard(FileSystem& files, const std::string& unfinished,
                         const std::string& reason, int shard, int num_shards) noexcept;

// Makes the written shards a checkpoint: temporary directory durable, renamed, parent durable,
// marker, then `latest`. Returns its path.
std::string commit_checkpoint(FileSystem& files, const std::string& directory, std::int64_t step,
                              const std::vector<ShardInfo>& shards);

// A replacement that stopped half-way leaves `step-X.old` and perhaps `step-X`: the old one goes
// when the new one is complete, else it gets its name back. Fine when there is no such.
void settle_replaced(FileSystem& files, const std::string& directory, std::int64_t step);
// After a failed save: removes what it has written and settles a replacement, as far as possible.
void abandon_checkpoint(FileSystem& files, const std::string& directory,
                        std::int64_t step) noexcept;

// Deletes all complete checkpoints but the newest `keep` and those whose step is a multiple of
// `keep_every` (0: no such). keep = 0 keeps all.
void delete_old_checkpoints(FileSystem& files, const std::string& directory, std::int64_t keep,
                            std::int64_t keep_every);

}  // namespace chaski
