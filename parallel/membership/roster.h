#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace chaski {

// A place in the logical layout: stage `stage` of the pipeline that trains replica `replica`.
struct Slot {
  int replica = 0;
  int stage = 0;
  auto operator<=>(const Slot&) const = default;
};
std::string to_string(Slot slot);  // "replica 1 stage 0"

// Rows [begin, begin + count) of the global batch.
struct RowRange {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  bool operator==(const RowRange&) const = default;
};

// The place of `rank` in a group of processes. Throws std::invalid_argument unless the ranks are
// ascending, at least two, and `rank` among them.
int position_in(const std::vector<int>& ranks, int rank);

// Which process hosts which slot, at one version of the membership. The layout (replicas × stages)
// never changes; who hosts a slot may. Processes are numbered as mpirun started them and keep their
// number; their rank in the communicator of the version is their position among the live ones.
class Roster {
 public:
  static constexpr int kMaxSlots = 4096;

  // One slot per process: process = stage · replicas + replica, so that the processes of a stage,
  // which exchange most, are neighbours, and a pipeline crosses from host to host.
  // Throws std::invalid_argument unless num_processes = replicas · stages, at most kMaxSlots.
  static Roster initial(int num_replicas, int num_stages, int num_processes);

  int num_replicas() const { return num_replicas_; }
  int num_stages() const { return num_stages_; }
  // 0 at the start of a job, one more with every change of membership.
  int version() const { return version_; }

  int process_of(Slot slot) const;
  // In the order of (stage, replica). Empty for a dead process.
  std::vector<Slot> slots_of(int process) const;
  // Ascending.
  const std::vector<int>& live_processes() const { return live_; }
  bool is_live(int process) const;

  // Ranks in the communicator of this version. Throws std::invalid_argument for a dead process.
  int rank_of(int process) const;
  int rank_of(Slot slot) const { return rank_of(process_of(slot)); }
  int process_at(int rank) const;

  // Who writes a stage's part of a checkpoint, one of those that host it.
  int writer_of(int stage) const { return process_of({0, stage}); }
  // Who speaks for the job: holds its output directory, reports, commits checkpoints.
  int reporter() const { return writer_of(0); }

  std::optional<Slot> previous_stage(Slot slot) const;  // none for the first
  std::optional<Slot> next_stage(Slot slot) const;      // none for the last
  // The slots that hold copies of a stage, by replica.
  std::vector<Slot> replicas_of(int stage) const;
  // The ranks that host them, each once, ascending: the group that sums the stage's gradients.
  std::vector<int> ranks_of_stage(int stage) const;

  // The replica's part of the global batch; whoever hosts it reads the same rows.
  // Throws std::invalid_argument when the replicas do not divide the batch.
  RowRange rows_of(int replica, std::int64_t global_batch) const;
  // How many micro-batches a replica runs in a step. Throws std::invalid_argument when rows are
  // left.
  std::int64_t num_micro_batches(std::int64_t global_batch, std::int64_t micro_batch) const;

  // The next version's roster: `dead` has left and `by` hosts its slots beside its own.
  // Throws std::invalid_argument when one of them is not live or both are the same.
  Roster with_takeover(int dead, int by) const;

  bool operator==(const Roster&) const = default;

 private:
  Roster() = default;
  std::size_t index_of(Slot slot) const;

  int num_replicas_ = 1;
  int num_stages_ = 1;
  int version_ = 0;
  std::vector<int> hosts_;  // by stage · replicas + replica
  std::vector<int> live_;
};

}  // namespace chaski
