#pragma once

#include <cstdint>
#include <vector>

#include "app/config/config.h"
#include "app/plan/dry_run.h"
#include "kernels/device/device.h"
#include "parallel/membership/roster.h"

namespace chaski {

// What one process of a run will hold, bytes.
struct RankMemory {
  bool on_gpu = false;
  int rank = 0;
  std::vector<Slot> slots;
  DryRun dry;                      // what its Device accounts for is exact
  std::int64_t token_batches = 0;  // of a step, on the device, among its activations
  std::int64_t prefetch = 0;       // the loader's batches
  std::int64_t pinned = 0;         // what a GPU copies from and to
  std::int64_t checkpoint_buffer = 0;
  std::int64_t token_pages = 0;   // of the mapped token files; the system may take them back
  std::int64_t process_base = 0;  // the program, its libraries, MPI and its threads
  // At most, for the time of a save that has written nothing yet when the next update comes. Not
  // part of total(): a save that is faster than a step needs none.
  std::int64_t checkpoint_copy = 0;

  // As the device accounts for it once a step has run.
  std::int64_t device_bytes(MemoryCategory category) const;
  std::int64_t device_total() const;
  // Of the whole process in the memory of its host, where a CPU's device has all of its.
  std::int64_t total() const;
};

// What plan_memory cannot know from the config.
struct PlanSurroundings {
  std::int64_t process_base = 0;
  std::int64_t token_file_bytes = 0;  // of the training files; 0: not there yet
};

// By rank; `model` as for dry_run(). Throws what the processes would at their start.
std::vector<RankMemory> plan_memory(Device& model, const TrainConfig& config, const Roster& roster,
                                    const PlanSurroundings& surroundings);

}  // namespace chaski
