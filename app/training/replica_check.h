#pragma once

#include <cstdint>

#include "app/step/hosted_model.h"
#include "app/step/membership.h"

namespace chaski {

// Compares the weights and the optimizer's state of each stage among the processes that host its
// replicas, which must have the same bits after every step; all processes take part. Throws
// std::runtime_error on all of them naming the stages and ranks that differ, and `equal_at`, the
// step at which they were last known to be equal.
void check_replicas(const Membership& membership, HostedModel& model, std::int64_t step,
                    std::int64_t equal_at);

}  // namespace chaski
