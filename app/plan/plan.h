#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "app/job/device_choice.h"
#include "app/job/machine_memory.h"
#include "app/plan/memory.h"
#include "app/plan/time.h"

namespace chaski {

enum class LinkPurpose { gradients, pipeline };
const char* name_of(LinkPurpose purpose);

// What goes from one rank to another in a step.
struct Link {
  int from = 0;
  int to = 0;
  LinkPurpose purpose = LinkPurpose::gradients;
  std::int64_t bytes = 0;
};
// What a run will take, predicted before anything of it exists.
struct TrainingPlan {
  TrainConfig config;
  RunLayout layout;
  int threads = 1;  // a process
  std::vector<RankMemory> ranks;
  // Every pair of ranks that exchange anything, in ascending order: the messages of each process's
  // dry run. On GPUs gradients go round in a ring, as NCCL would have it by default. None of a
  // plan's neighbours.
  std::vector<Link> links;
  std::optional<StepTime> time;  // none without measured rates

  std::int64_t tokens_per_step() const {
    return config.parallel.global_batch * config.data.sequence_length;
  }
  bool on_gpu() const { return is_on_gpu(config); }
  double tokens_per_second() const;  // 0 when there is no time
  // On the device that computes: of its GPU, or of the whole process on a CPU.
  std::int64_t largest_process_bytes() const;
  std::int64_t all_processes_bytes() const;
  // Of the machine's memory, without the token files' pages, which the system may take back.
  std::int64_t needed_bytes() const;
  Work work() const;  // of a step, all processes
};

// The GPU that each process of a run has for itself.
struct PlannedGpu {
  std::shared_ptr<Device> device;  // this machine's, or a counting one
  std::int64_t memory_bytes = 0;   // that a process can take of it; 0: not known
};

// What plans of one machine share.
struct PlanningMachine {
  int cores = 1;
  std::optional<PlannedGpu> gpu;  // of runs on GPUs
  MachineMemory memory;
  std::string missing_data;  // why the size of the token files is not known; empty: it is
  PlanSurroundings surroundings;
  std::optional<MachineRates> rates;
};

// Whether each process has room on its GPU; true for runs on CPUs, and where it is not known.
bool fits_gpu(const TrainingPlan& plan, const PlanningMachine& machine);

// Whether all processes of a run together have room on the machine; true where its memory is not
// known.
bool fits(const TrainingPlan& plan, const MachineMemory& memory);

// Threads that each of so many processes on this machine will use (as threads_for_process).
int planned_threads(const TrainConfig& config, int num_processes, int cores);

// Of a config whose device is settled; on a GPU `machine` has one. Throws std::invalid_argument as
// resolve_layout does.
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

// What a kind of feed-forward network takes to be trained.
struct FfnChoice {
  std::string name;  // "moc, recompute elementwise"
  // Kept from the forward for the backward pass, of one token and layer; 0 where all is computed
  // again.
  std::int64_t bytes_per_token = 0;
  TrainingPlan plan;
};
// The config with a dense FFN and with MoC (its own, or the default one), each with all that can be
// computed again. No times.
std::vector<FfnChoice> plan_ffn_choices(const TrainingPlan& plan, const PlanningMachine& machine);

}  // namespace chaski
