#pragma once

#include <cstdint>
#include <vector>

#include "app/config/config.h"
#include "kernels/device/device.h"
#include "kernels/device/op_count.h"
#include "model/stage.h"
#include "parallel/membership/roster.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// Floating-point operations of one kind and the memory traffic of everything else.
struct Work {
  double gemm_flops = 0.0;
  double channel_flops = 0.0;  // in products of MoC's kept channels alone (kernels/moc/products.h)
  double attention_forward_flops = 0.0;
  double attention_backward_flops = 0.0;
  double traffic_bytes = 0.0;  // read and written by what is bound by memory

  double product_flops() const { return gemm_flops + channel_flops; }
  double attention_flops() const { return attention_forward_flops + attention_backward_flops; }
  double flops() const { return product_flops() + attention_flops(); }
  Work& operator+=(const Work& other);
};

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
