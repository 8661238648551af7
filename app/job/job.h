#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/mpi/communicator.h"

namespace chaski {

// Runs `work` on rank `root` and gives its result to all. What it throws is thrown on every
// process, so that an error that only that rank can see (a locked directory) ends the whole job in
// order.
std::string run_on(int root, Communicator& communicator, const std::function<std::string()>& work);

// One line of each process, by rank, on all of them.
std::vector<std::string> lines_of_all(Communicator& communicator, const std::string& own);

// The processes of the job on this process's host.
struct HostShare {
  std::vector<int> ranks;  // ascending, its own included
  int local_rank = 0;      // its place among them

  int processes() const { return static_cast<int>(ranks.size()); }
};
HostShare share_of_host(Communicator& communicator);

// Threads for this process's ops: `wanted`, or, where that is 0, OMP_NUM_THREADS, or else its share
// of the host's cores.
int threads_for_process(Communicator& communicator, std::int64_t wanted);

}  // namespace chaski
