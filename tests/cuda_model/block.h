#pragma once

#include <cstdint>
#include <functional>

namespace chaski::cuda_model {

/// Runs the threads of the block that the built-in variables describe to their end.
void run_block(const std::function<void()>& thread);

std::uint64_t fiber_switches();

}  // namespace chaski::cuda_model
