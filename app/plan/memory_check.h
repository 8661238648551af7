#pragma once

#include <string>

#include "app/config/config.h"
#include "app/job/machine_memory.h"
#include "app/step/membership.h"

namespace chaski {

// Refuses a run on CPUs whose processes on this host will need more memory together than it has, or
// may have, swap included: before anything of it is allocated, for it would be killed in its midst.
// All processes of the job take part, each with `threads` threads. Throws std::invalid_argument
// with what is needed, what there is, and `hint`.
void check_memory_of_run(const TrainConfig& config, const Membership& membership, int threads,
                         const std::string& hint, const MachineMemory& machine = machine_memory());

// What a process that hosts this stage of the run holds at the very least, counted so that no
// config overflows it: its weights, gradients and optimizer's state, the step's tokens, one row of
// activations a token. Throws std::invalid_argument for more stages than layers.
double least_bytes_of_process(const TrainConfig& config, const RunLayout& layout, int stage);

}  // namespace chaski
