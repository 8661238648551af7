#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <functional>
#include <string>

namespace chaski::cuda_model {

constexpr int kMaxThreads = 1024;
constexpr std::size_t kDefaultSharedBytes = std::size_t{48} * 1024;
constexpr std::size_t kMaxSharedBytes = std::size_t{227} * 1024;

struct Grid {
  dim3 blocks;
  dim3 threads;
  std::size_t shared_bytes = 0;
  const void* function = nullptr;
  std::function<void()> thread;
};

/// Message on stderr, then abort(). With kernel, block and thread while a kernel runs.
[[noreturn]] void fail(const std::string& what);

/// Ends the program if no device could run the grid. `allowed_shared_bytes`: what the function may
/// have of dynamic shared memory.
void check_limits(const Grid& grid, std::size_t allowed_shared_bytes);

/// Runs all blocks to their end. One grid at a time in the process.
void run_grid(const Grid& grid);

/// For counts() of control.h.
void count_graph();
void count_allocation();

/// Next value of the model's random series.
std::uint64_t next_random();
/// Below `bound`, which is positive.
std::uint64_t next_random(std::uint64_t bound);

}  // namespace chaski::cuda_model
