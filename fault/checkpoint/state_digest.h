#pragma once

#include <cstdint>
#include <vector>

#include "model/parameter.h"
#include "optim/optimizer.h"

namespace chaski {

// A number made of every byte that a checkpoint of this stage would hold: weights and optimizer
// state, with their names. Replicas whose numbers are equal are equal.
std::uint64_t state_digest(const ParameterSet& weights, const std::vector<NamedTensor>& optimizer);

}  // namespace chaski
