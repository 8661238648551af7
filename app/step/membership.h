#pragma once

#include <memory>

#include "parallel/membership/roster.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// The processes that take part in a run and what each of them hosts, at one version of the roster.
// Whatever a process does in the name of others (reporting, writing) follows from it.
class Membership {
 public:
  // All processes that mpirun started, one slot each. Throws as Roster::initial.
  Membership(MpiRuntime& runtime, int num_replicas, int num_stages);
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
