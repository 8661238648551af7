#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/stage.h"
#include "parallel/membership/roster.h"
#include "parallel/mpi/communicator.h"
#include "parallel/pipeline/schedule.h"

namespace chaski {

// A slot that this process hosts and the Stage that computes it. Slots of the same stage share one
// Stage: their gradients add up in it, and each has stashes of its own.
struct HostedSlot {
  Slot slot;
  Stage* stage = nullptr;
  // Told by the Stage's last backward pass of a step, whichever of its slots runs it: the same for
  // all of them. May be null.
  GradientListener* listener = nullptr;
};

// Micro-batch m of a replica. The tensors must stay valid and unchanged until the step ends. In an
// evaluation a replica that has fewer than others gives empty ones after its last.
using BatchSource = std::function<MicroBatch(int replica, int micro_batch)>;

struct PipelineResult {
  double loss_sum = 0;  // Σ over targets of this process's slots, nats; 0 before the last stage
  std::int64_t num_targets = 0;  // likewise
  // Spent waiting for other stages; a GPU may still have computed meanwhile.
  double wait_seconds = 0;
};

// Executes this process's part of a step: the programs of its slots, interleaved, moving
// activations and gradients between stages to whoever hosts the neighbour according to the Roster.
class PipelineExecutor {
 public:
  // Allocates the message buffers (category communication). Every slot of `hosted` must be hosted
  // by this process in the roster and none be left out; the stages' options give micro-batch and
  // sequence length and must leave room for stashes_needed() micro-batches. On GPUs all processes
  // must make theirs at a time. Throws std::invalid_argument otherwise.
  PipelineExecutor(Communicator& communicator, const Roster& roster, ScheduleKind kind,
                   int num_micro_batches, const std::vector<HostedSlot>& hosted);
  ~PipelineExecutor();

  // Runs all micro-batches forward and backward; adds to the stages' gradients those of
  // gradient_scale · Σ loss. Throws PeerFailure.
  PipelineResult run_step(const BatchSource& source, float gradient_scale);

  // A forward pass of at most `num_micro_batches` micro-batches of each replica without gradients
  // (Stage::evaluate), between steps.
  PipelineResult evaluate(const BatchSource& source, int num_micro_batches);

  // Drops what is in flight after a failed step, or, where a peer hangs, ends the process.
  // Destroying the executor does the same, and is all that may be done with it afterwards.
  void abort() noexcept;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace chaski
