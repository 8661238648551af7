#include "parallel/membership/roster.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

namespace chaski {

std::string to_string(Slot slot) {
  return fmt::format("replica {} stage {}", slot.replica, slot.stage);
}

int position_in(const std::vector<int>& ranks, int rank) {
  const auto found = std::find(ranks.begin(), ranks.end(), rank);
  if (found == ranks.end() || !std::is_sorted(ranks.begin(), ranks.end()) || ranks.size() < 2) {
    throw std::invalid_argument(
        fmt::format("a group of rank {} needs ascending ranks, its own among them", rank));
  }
  return static_cast<int>(found - ranks.begin());
}

Roster Roster::initial(int num_replicas, int num_stages, int num_processes) {
  if (num_replicas < 1 || num_stages < 1) {
    throw std::invalid_argument(fmt::format(
        "parallel: {} replicas x {} stages; both must be at least 1", num_replicas, num_stages));
  }
  if (static_cast<std::int64_t>(num_replicas) * num_stages != num_processes) {
    throw std::invalid_argument(
        fmt::format("parallel: data = {} x pipeline = {} needs {} processes, but {} started\n"
                    "hint: mpirun -n {}",
                    num_replicas, num_stages, static_cast<std::int64_t>(num_replicas) * num_stages,
                    num_processes == 1 ? "1 was" : fmt::format("{} were", num_processes),
                    static_cast<std::int64_t>(num_replicas) * num_stages));
  }
  if (num_processes > kMaxSlots) {
    throw std::invalid_argument(fmt::format("parallel: {} replicas x {} stages; at most {} allowed",
                                            num_replicas, num_stages, kMaxSlots));
  }
  Roster roster;
  roster.num_replicas_ = num_replicas;
  roster.num_stages_ = num_stages;
  for (int process = 0; process < num_processes; ++process) {
    roster.hosts_.push_back(process);
    roster.live_.push_back(process);
  }
  return roster;
}

std::size_t Roster::index_of(Slot slot) const {
  if (slot.replica < 0 || slot.replica >= num_replicas_ || slot.stage < 0 ||
      slot.stage >= num_stages_) {
    throw std::invalid_argument(fmt::format("roster: there is no {} among {} replicas x {} stages",
                                            to_string(slot), num_replicas_, num_stages_));
  }
  return static_cast<std::size_t>(slot.stage) * static_cast<std::size_t>(num_replicas_) +
         static_cast<std::size_t>(slot.replica);
}

int Roster::process_of(Slot slot) const {
  return hosts_[index_of(slot)];
}

std::vector<Slot> Roster::slots_of(int process) const {
  std::vector<Slot> slots;
  for (int stage = 0; stage < num_stages_; ++stage) {
    for (const Slot slot : replicas_of(stage)) {
      if (process_of(slot) == process) slots.push_back(slot);
    }
  }
  return slots;
}

bool Roster::is_live(int process) const {
  return std::binary_search(live_.begin(), live_.end(), process);
}

int Roster::rank_of(int process) const {
  if (!is_live(process)) {
    throw std::invalid_argument(
        fmt::format("roster: process {} is not live in version {}", process, version_));
  }
  return static_cast<int>(std::lower_bound(live_.begin(), live_.end(), process) - live_.begin());
}

int Roster::process_at(int rank) const {
  if (rank < 0 || rank >= std::ssize(live_)) {
    throw std::invalid_argument(
        fmt::format("roster: rank {} of {} live processes", rank, live_.size()));
  }
  return live_[static_cast<std::size_t>(rank)];
}

std::optional<Slot> Roster::previous_stage(Slot slot) const {
  if (slot.stage == 0) return std::nullopt;
  return Slot{slot.replica, slot.stage - 1};
}

std::optional<Slot> Roster::next_stage(Slot slot) const {
  if (slot.stage + 1 == num_stages_) return std::nullopt;
  return Slot{slot.replica, slot.stage + 1};
}

std::vector<Slot> Roster::replicas_of(int stage) const {
  std::vector<Slot> slots;
  for (int replica = 0; replica < num_replicas_; ++replica) slots.push_back({replica, stage});
  return slots;
}

std::vector<int> Roster::ranks_of_stage(int stage) const {
  std::vector<int> ranks;
  for (const Slot slot : replicas_of(stage)) ranks.push_back(rank_of(slot));
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

RowRange Roster::rows_of(int replica, std::int64_t global_batch) const {
  index_of({replica, 0});
  if (global_batch < 1 || global_batch % num_replicas_ != 0) {
    throw std::invalid_argument(
        fmt::format("parallel: global_batch = {} is not a multiple of {} replicas", global_batch,
                    num_replicas_));
  }
  const std::int64_t count = global_batch / num_replicas_;
  return {replica * count, count};
}

std::int64_t Roster::num_micro_batches(std::int64_t global_batch, std::int64_t micro_batch) const {
  const std::int64_t rows = rows_of(0, global_batch).count;
  if (micro_batch < 1 || rows % micro_batch != 0) {
    throw std::invalid_argument(fmt::format(
        "parallel: global_batch = {} over {} replicas leaves {} rows each, not a multiple of "
        "micro_batch = {}",
        global_batch, num_replicas_, rows, micro_batch));
  }
  return rows / micro_batch;
}

Roster Roster::with_takeover(int dead, int by) const {
  for (const int process : {dead, by}) {
    if (!is_live(process)) {
      throw std::invalid_argument(
          fmt::format("roster: process {} is not live in version {}", process, version_));
    }
  }
  if (dead == by) {
    throw std::invalid_argument(fmt::format("roster: process {} cannot take over itself", dead));
  }
  Roster next = *this;
  ++next.version_;
  std::replace(next.hosts_.begin(), next.hosts_.end(), dead, by);
  next.live_.erase(std::find(next.live_.begin(), next.live_.end(), dead));
  return next;
}

}  // namespace chaski
