#include "app/job/job.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <unistd.h>

#include "app/job/program_error.h"
#include "kernels/device/cpu_cores.h"

namespace chaski {
namespace {

// First character of the message that says how the work ended.
constexpr char kDone = 'd';
constexpr char kRefused = 'i';
constexpr char kFailed = 'f';

std::string outcome_of(const std::function<std::string()>& work) {
  try {
    return kDone + work();
  } catch (const std::invalid_argument& error) {
    return std::string(1, kRefused) + error.what();
  } catch (const std::exception& error) {
    const ProgramError described = describe_error(error);
    const std::string hint = described.hint.empty() ? "" : "\nhint: " + described.hint;
    return kFailed + described.message + hint;
  }
}

}  // namespace

std::string run_on(int root, Communicator& communicator, const std::function<std::string()>& work) {
  std::string outcome;
  if (communicator.rank() == root) outcome = outcome_of(work);
  communicator.broadcast(outcome, root);
  const std::string text = outcome.substr(1);
  if (outcome[0] == kRefused) throw std::invalid_argument(text);
  if (outcome[0] == kFailed) throw std::runtime_error(text);
  return text;
}

std::vector<std::string> lines_of_all(Communicator& communicator, const std::string& own) {
  std::string joined;
  for (const std::string& line : communicator.gather(own, 0)) joined += line + '\n';
  communicator.broadcast(joined, 0);
  std::istringstream stream(joined);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

HostShare share_of_host(Communicator& communicator) {
  HostShare share{.ranks = communicator.ranks_on_this_host()};
  share.local_rank = static_cast<int>(
      std::lower_bound(share.ranks.begin(), share.ranks.end(), communicator.rank()) -
      share.ranks.begin());
  return share;
}

int threads_for_process(Communicator& communicator, std::int64_t wanted) {
  // All take part in the count, whatever each has been told.
  const int neighbours = share_of_host(communicator).processes();
  if (wanted > 0) return static_cast<int>(wanted);
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return 0;
  const int cores = usable_cores();
  // A launcher that binds processes to cores has shared them out already.
  const bool bound = cores < sysconf(_SC_NPROCESSORS_ONLN);
  return bound ? cores : std::max(1, cores / neighbours);
}

}  // namespace chaski
