#pragma once

#include "parallel/membership/roster.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// Who uses which MPI tags. Messages of one tag between two processes keep their order, so a tag
// names a stream, not a message.
inline constexpr int kPipelineTags = Communicator::kGatherTag + 1;
inline constexpr int kReducerTags = kPipelineTags + 2 * Roster::kMaxSlots;

// Activations that `sender` gives to the next stage.
inline int activation_tag(const Roster& roster, Slot sender) {
  return kPipelineTags + 2 * (sender.stage * roster.num_replicas() + sender.replica);
}
// Gradients that `sender` gives back to the previous stage.
inline int gradient_tag(const Roster& roster, Slot sender) {
  return activation_tag(roster, sender) + 1;
}

constexpr bool is_pipeline_tag(int tag) {
  return tag >= kPipelineTags && tag < kReducerTags;
}

// The two streams of a stage's gradient reduction: parts to be summed, sums.
constexpr int reduce_scatter_tag(int stage) {
  return kReducerTags + 2 * stage;
}
constexpr int all_gather_tag(int stage) {
  return reduce_scatter_tag(stage) + 1;
}

// Every MPI allows so many. There are at most as many stages as slots.
static_assert(all_gather_tag(Roster::kMaxSlots - 1) <= 32767);

}  // namespace chaski
