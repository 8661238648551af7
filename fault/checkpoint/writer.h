#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fault/checkpoint/file_system.h"
#include "fault/checkpoint/metadata.h"
#include "model/parameter.h"
#include "optim/optimizer.h"

namespace chaski {

// Tensors are written in pieces of about this size, through one small buffer of whoever provides
// them; a file is read back, to be checksummed, in pieces of the other.
inline constexpr std::int64_t kTensorPieceBytes = std::int64_t{1} << 20;
inline constexpr std::int64_t kFilePieceBytes = std::int64_t{4} << 20;

struct CheckpointWriterOptions {
  std::int64_t keep = 3;        // the newest that stay; 0: all
  std::int64_t keep_every = 0;  // checkpoints whose step is a multiple stay for ever; 0: none
  bool async = true;            // write in a thread of its own
  int copy_threads = 0;         // that before_update() uses; 0: all cores this process may use
  // Every pipeline stage's first replica writes one shard into a directory that all of them see.
  // Shard 0 commits the checkpoint when the others have been written.
  int shard = 0;
  int num_shards = 1;
  double shard_timeout_seconds = 600.0;
  // Where the caller itself waits for them (not async): called now and then; what it throws makes
  // the save fail.
  std::function<void()> while_waiting = [] {};
};

struct SaveReport {
  std::int64_t step = 0;
  std::string path;                 // of the finished checkpoint
  std::uint64_t bytes = 0;          // of this process's shard
  double stall_seconds = 0;         // for which the caller was held up, the next two included
  double wait_seconds = 0;          // of these: for the save before to finish
  double copy_seconds = 0;          // of these: in before_update()
  std::int64_t copied_bytes = 0;    // in before_update()
  double total_seconds = 0;         // from the call of save() to durable
  bool directory_vanished = false;  // and was made again; older checkpoints went with it
};

// Saves checkpoints into a directory (`<output>/checkpoints`), at most one at a time. A save that
// fails leaves older checkpoints and `latest` as they were; its error is thrown by the next
// check(), save() (which then does not save) or wait(). Memory: 1 MiB, and when async the tensors
// that were not yet written when an update came, until the save is done. One thread uses the
// object.
class CheckpointWriter {
 public:
  // Creates the directory. Throws std::runtime_error naming the path when that fails.
  explicit CheckpointWriter(const std::string& directory,
                            const CheckpointWriterOptions& options = {},
                            FileSystem& files = posix_file_system());
  ~CheckpointWriter();  // waits; an error is lost: call wait() first
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Saves the values of `weights` and the optimizer's state (may be empty). Waits for the save
  // before, then starts this one. The tensors must stay where they are while busy(), and
  // before_update() must be called before they change. When not async, returns when the checkpoint
  // is durable. Throws std::runtime_error naming the path, the reason
  // and the free space when the save before (or, not async, this one) failed.
  void save(const CheckpointMetadata& metadata, const ParameterSet& weights,
            const std::vector<NamedTensor>& optimizer);
  // Keeps the values of what a save in flight has not read yet: by a copy, or, where there is no
  // memory for it, by waiting for the save. Cheap when there is nothing to do.
  void before_update();
  // Returns when no save is in flight; throws as save() does.
  void wait();
  // Throws as wait() does when the last save has failed, without waiting for one in flight.
  void check();
  bool busy() const;
  // The save in flight waits no longer for other processes' shards, one of which may be dead:
  // unless they are all there, it fails.
  void abandon() noexcept;
  // Before the same step is saved once more: removes what a failed attempt of any process has left.
  // By the writer of shard 0 (the others do nothing), while no process saves.
  void clear_attempt(std::int64_t step) noexcept;
  // The saves that finished well since the last call, oldest first.
  std::vector<SaveReport> take_reports();

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

// A tensor to be written. `read` gives some of its bytes, [offset, offset + bytes), valid until the
// next call; it is called for each part once, in order.
struct TensorRecord {
  std::string name;  // "weights/…" or "optimizer/…"
  DType dtype = DType::f32;
  Shape shape;
  std::function<const void*(std::int64_t offset, std::int64_t bytes)> read;
};

// Writes a checkpoint directory `path` outside of any run, in the calling thread, holding no more
// of the tensors than `read` does. Throws std::invalid_argument when `path` exists, FileError.
void write_checkpoint(const std::string& path, const CheckpointMetadata& metadata,
                      const std::vector<TensorRecord>& tensors,
                      FileSystem& files = posix_file_system());

// The tensors' bytes.
std::int64_t checkpoint_bytes_of(const ParameterSet& weights,
                                 const std::vector<NamedTensor>& optimizer);

}  // namespace chaski
