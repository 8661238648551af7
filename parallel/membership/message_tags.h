#pragma once

#include "parallel/membership/roster.h"

namespace chaski {

// Who uses which MPI tags. Messages of one tag between two processes keep their order, so a tag
// names a stream, not a message. All fit the 32767 that every MPI allows for up to 4096 slots and
// 8192 stages.
inline constexpr int kGatherTag = 0;
inline constexpr int kPipelineTags = 1;
inline constexpr int kMaxSlots = 4096;
inline constexpr int kReducerTags = kPipelineTags + 2 * kMaxSlots;

// Activations that `sender` gives to the next stage.
inline int activation_tag(const Roster& roster, Slot sender) {
  return kPipelineTags + 2 * (sender.stage * roster.num_replicas() + sender.replica);
}
// Gradients that `sender` gives back to the previous stage.
inline int gradient_tag(const Roster& roster, Slot sender) {
  return activation_tag(roster, sender) + 1;
}

inline bool is_pipeline_tag(int tag) {
  return tag >= kPipelineTags && tag < kReducerTags;
}

// The three streams of a stage's gradient reduction: parts to be summed, sums, scalars.
inline int reduce_scatter_tag(int stage) {
  return kReducerTags + 3 * stage;
}
inline int all_gather_tag(int stage) {
  return kReducerTags + 3 * stage + 1;
}
inline int scalar_tag(int stage) {
  return kReducerTags + 3 * stage + 2;
}

}  // namespace chaski
