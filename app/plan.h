#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/config.h"
#include "app/machine_memory.h"
#include "app/plan_memory.h"
#include "app/plan_time.h"
#include "app/plan_work.h"

namespace chaski {

// What a run will take, predicted before anything of it exists.
struct TrainingPlan {
  TrainConfig config;
  RunLayout layout;
  int threads = 1;  // a process
  std::vector<RankMemory> ranks;
  std::vector<Link> links;
  std::optional<StepTime> time;  // none without measured rates

  std::int64_t tokens_per_step() const {
    return config.parallel.global_batch * config.data.sequence_length;
  }
  double tokens_per_second() const;  // 0 when there is no time
  std::int64_t largest_process_bytes() const;
  std::int64_t all_processes_bytes() const;
  // The same without the token files' pages, which the system may take back.
  std::int64_t needed_bytes() const;
  Work work() const;  // of a step, all processes
};

// What plans of one machine share.
struct PlanningMachine {
  int cores = 1;
  MachineMemory memory;
  std::string missing_data;  // why the size of the token files is not known; empty: it is
  PlanSurroundings surroundings;
  std::optional<MachineRates> rates;
};

// Whether all processes of a run together have room on the machine; true where its memory is not
// known.
bool fits(const TrainingPlan& plan, const MachineMemory& memory);

// Threads that each of so many processes on this machine will use (as threads_for_process).
int planned_threads(const TrainConfig& config, int num_processes, int cores);

// Throws std::invalid_argument as resolve_layout does.
TrainingPlan make_plan(const TrainConfig& config, int num_processes,
                       const PlanningMachine& machine);

struct WhatIf {
  std::string change;
  TrainingPlan plan;
};
// The plans of some neighbours of a config: a bigger micro-batch, a longer sequence, more
// processes, more stages, recomputation, checkpoints written synchronously. Those that are not
// possible are left out.
std::vector<WhatIf> plan_neighbours(const TrainingPlan& plan, const PlanningMachine& machine);

}  // namespace chaski
