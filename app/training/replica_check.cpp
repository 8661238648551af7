#include "app/training/replica_check.h"

#include <fmt/format.h>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "app/job/job.h"
#include "fault/checkpoint/state_digest.h"

namespace chaski {
namespace {

// "rank 1: stage 0 is 5d1f…".
std::string describe(int rank, const std::map<int, std::uint64_t>& digests) {
  std::string text = fmt::format("rank {}:", rank);
  for (const auto& [stage, digest] : digests) {
    text += fmt::format(" stage {} is {:016x}", stage, digest);
  }
  return text;
}

}  // namespace

void check_replicas(const Membership& membership, HostedModel& model, std::int64_t step,
                    std::int64_t equal_at) {
  const Roster& roster = membership.roster();
  if (roster.num_replicas() == 1) return;
  std::map<int, std::uint64_t> digests;
  for (const auto& stage : model.stages()) {
    digests[stage->stage] = state_digest(stage->model->parameters(), stage->optimizer->state());
  }
  // Of each stage the largest number and the largest complement: complements of each other where
  // all numbers are equal.
  const auto num_stages = static_cast<std::size_t>(roster.num_stages());
  std::vector<std::int64_t> largest(2 * num_stages, std::numeric_limits<std::int64_t>::min());
  for (const auto& [stage, digest] : digests) {
    const auto number = static_cast<std::int64_t>(digest);
    largest[static_cast<std::size_t>(stage)] = number;
    largest[num_stages + static_cast<std::size_t>(stage)] = ~number;
  }
  Communicator& communicator = membership.communicator();
  communicator.all_reduce_max(std::span<std::int64_t>(largest));
  bool equal = true;
  for (std::size_t stage = 0; stage < num_stages; ++stage) {
    equal = equal && largest[stage] == ~largest[num_stages + stage];
  }
  if (equal) return;
  const auto lines = lines_of_all(communicator, describe(communicator.rank(), digests));
  throw std::runtime_error(fmt::format(
      "after step {} the replicas of a stage differ in weights or optimizer state: {}\nhint: at "
      "step {} they were equal: resume from a checkpoint that is not newer; processors of unlike "
      "kinds, a faulty one, or memory without error correction can be the cause",
      step, fmt::join(lines, "; "), equal_at));
}

}  // namespace chaski
