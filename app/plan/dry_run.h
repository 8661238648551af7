#pragma once

#include <cstdint>
#include <vector>

#include "app/config/config.h"
#include "app/plan/work.h"
#include "kernels/device/device.h"
#include "model/stage.h"
#include "parallel/membership/roster.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// What a process of a run holds and does: counted while all that it would be made of is made, and
// runs a step and an evaluation, on a device that only counts.
struct DryRun {
  StageRange range;                    // of the first stage
  MemoryUsage memory;                  // after the step and the evaluation
  std::vector<MemoryPart> parts;       // the same by purpose
  std::vector<WorkspacePhase> phases;  // largest first
  std::int64_t num_parameters = 0;
  std::int64_t ffn_bytes_per_token = 0;  // Stage::ffn_bytes_per_token
  std::int64_t saved_bytes = 0;          // of what a checkpoint holds of it: weights and state
  std::vector<OpCount> ops;              // of the step
  Work step;
  // Of one pass of a micro-batch, of all stages together; with the head also its backward pass.
  Work forward;
  Work backward;
  std::vector<Communicator::Sent> sent;  // in the step
};

// Of the process of this rank, with all slots that the roster gives it, and of a config whose
// device is settled (settle_device). `model`: a device like the process's own, with as many
// threads; it is only asked what its libraries would take, for which these may prepare themselves.
// Throws what the process would at its start.
DryRun dry_run(Device& model, const TrainConfig& config, const Roster& roster, int rank);

}  // namespace chaski
