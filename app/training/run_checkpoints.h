#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "app/step/hosted_model.h"
#include "app/step/membership.h"
#include "fault/checkpoint/writer.h"

namespace chaski {

// What a run is begun from, as the command line says it.
struct CheckpointChoice {
  std::string resume;     // empty: a new run; "auto" or a path
  std::string init_from;  // empty, or a checkpoint whose weights a new run begins with
};

// Clears what interrupted saves have left in the run's checkpoint directory and says which
// checkpoint to begin from; empty: none. By the process that holds the output directory's lock.
// Throws std::invalid_argument where an earlier run's checkpoints would be mixed with a new one's,
// std::runtime_error where those to go on from are damaged.
std::string choose_checkpoint(const TrainConfig& config, const CheckpointChoice& choice);

// This process's part in saving a run: the shards of those stages that it writes.
class RunCheckpoints {
 public:
  RunCheckpoints(const TrainConfig& config, int copy_threads);

  // The stages that this process writes from now on. Whoever calls it has waited for the saves in
  // flight, whose stages may be gone. `membership`, which may become another, outlives this.
  void adopt(const Membership& membership, HostedModel& model);

  // As CheckpointWriter, for each of them, whatever happens to the others; the first error is
  // thrown. Without any each is a no-op.
  void save(const CheckpointMetadata& metadata);
  void before_update();
  void wait();
  void check();
  bool busy() const;
  void clear_attempt(std::int64_t step) noexcept;
  // No save waits any longer for what another process should have written.
  void abandon() noexcept;
  // Of the checkpoints that are complete: on the process that writes the first shard and so commits
  // them, which is the reporter.
  std::vector<SaveReport> take_reports();

  const std::string& directory() const { return directory_; }

 private:
  struct Shard {
    HostedStage* stage = nullptr;
    std::unique_ptr<CheckpointWriter> writer;
  };

  template <typename Work>
  void for_each(const Work& work);

  const CheckpointConfig& config_;
  std::string directory_;
  int copy_threads_;
  // Shard 0, which is committed when all others are there, is saved last.
  std::map<int, Shard, std::greater<>> shards_;
};

}  // namespace chaski
