#pragma once

#include <memory>

#include "app/config/config.h"
#include "parallel/membership/roster.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// With which a run of so many processes begins: a slot each. Throws as resolve_layout.
Roster initial_roster(const TrainConfig& config, int num_processes);

// The processes that take part in a run and what each of them hosts, at one version of the roster.
// Whatever a process does in the name of others (reporting, writing) follows from it.
class Membership {
 public:
  // All processes that mpirun started. Throws as initial_roster.
  Membership(MpiRuntime& runtime, const TrainConfig& config);
  // The same, a whole model each.
  explicit Membership(MpiRuntime& runtime);
  // A communicator whose ranks are the roster's live processes in order.
  Membership(std::unique_ptr<Communicator> communicator, Roster roster);

  Communicator& communicator() const { return *communicator_; }
  const Roster& roster() const { return roster_; }
  int process() const { return roster_.process_at(communicator_->rank()); }

  // Whether this process speaks for the run: it holds the output directory's lock, writes the
  // metrics and the console, and reads what only one may read.
  bool reports() const { return process() == roster_.reporter(); }
  int reporter_rank() const { return roster_.rank_of(roster_.reporter()); }
  // Whether this process writes the stage's shard of a checkpoint.
  bool writes(int stage) const { return process() == roster_.writer_of(stage); }

 private:
  std::unique_ptr<Communicator> communicator_;
  Roster roster_;
};

}  // namespace chaski
