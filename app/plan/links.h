#pragma once

#include <cstdint>
#include <vector>

#include "app/config/config.h"
#include "kernels/device/device.h"
#include "parallel/membership/roster.h"

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
// Every pair of ranks that exchange anything, in ascending order: the messages of each process's
// dry run (app/plan/dry_run.h). On GPUs gradients go round in a ring, as NCCL would have it by
// default.
std::vector<Link> plan_links(Device& model, const TrainConfig& config, const Roster& roster);

}  // namespace chaski
