#include "tests/cuda_model/grid.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <memory>
#include <numeric>
#include <sstream>

#include "tests/cuda_model/block.h"
#include "tests/cuda_model/control.h"
#include "tests/cuda_model/program_symbols.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace chaski::cuda_model {
namespace {

const Grid* running = nullptr;
unsigned char* dynamic_shared = nullptr;
Counts totals;

std::uint64_t& random_state() {
  static std::uint64_t state = [] {
    const char* const seed = std::getenv("CHASKI_CUDA_MODEL_SEED");
    return seed == nullptr ? std::uint64_t{1} : std::strtoull(seed, nullptr, 10);
  }();
  return state;
}

std::string text(const uint3& index) {
  std::ostringstream stream;
  stream << '(' << index.x << ", " << index.y << ", " << index.z << ')';
  return stream.str();
}

std::string text(const dim3& size) {
  return text(uint3{size.x, size.y, size.z});
}

/// What was never written in this block reads as NaN or -1.
void poison_shared_memory() {
  for (const auto& variable : shared_variables()) {
    std::memset(variable.address, 0xff, variable.bytes);
  }
  if (dynamic_shared != nullptr) std::memset(dynamic_shared, 0xff, running->shared_bytes);
}

struct Freed {
  void operator()(unsigned char* memory) const { std::free(memory); }
};

/// Exactly as many bytes, so that AddressSanitizer sees the first one beyond.
std::unique_ptr<unsigned char, Freed> shared_buffer(std::size_t bytes) {
  void* memory = nullptr;
  if (bytes > 0 && posix_memalign(&memory, 128, bytes) != 0) fail("out of host memory");
  return std::unique_ptr<unsigned char, Freed>(static_cast<unsigned char*>(memory));
}

/// A walk through 0 … count-1 that visits each once, from a random start by a random step.
class RandomWalk {
 public:
  explicit RandomWalk(std::uint64_t count)
      : count_(count), position_(next_random(count)), step_(1 + next_random(count)) {
    while (std::gcd(step_, count_) != 1) ++step_;
  }
  std::uint64_t next() {
    const std::uint64_t here = position_;
    position_ = (position_ + step_) % count_;
    return here;
  }

 private:
  std::uint64_t count_;
  std::uint64_t position_;
  std::uint64_t step_;
};

}  // namespace

std::uint64_t next_random() {
  // splitmix64
  std::uint64_t z = (random_state() += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

std::uint64_t next_random(std::uint64_t bound) {
  // The upper half of the product, without a division: this is asked at every switch.
  return static_cast<std::uint64_t>(static_cast<unsigned __int128>(next_random()) * bound >> 64);
}

void set_seed(std::uint64_t seed) {
  random_state() = seed;
}

void count_graph() {
  ++totals.graphs;
}

void count_allocation() {
  ++totals.allocations;
}

Counts counts() {
  totals.switches = fiber_switches();
  return totals;
}

std::vector<std::string> unguarded_shared_variables() {
  std::vector<std::string> names;
  for (const auto& variable : shared_variables()) {
    if (variable.external) names.push_back(variable.name);
  }
  return names;
}

void fail(const std::string& what) {
  std::fprintf(stderr, "chaski: CUDA model: %s\n", what.c_str());
  if (running != nullptr) {
    std::fprintf(stderr, "  in kernel %s, block %s of %s, thread %s of %s\n",
                 function_name(running->function).c_str(), text(blockIdx).c_str(),
                 text(gridDim).c_str(), text(threadIdx).c_str(), text(blockDim).c_str());
  }
  std::fflush(stderr);
  std::abort();
}

void fail_in_kernel(const char* what) {
  fail(what);
}

void check_limits(const Grid& grid, std::size_t allowed_shared_bytes) {
  const auto refuse = [&grid](const std::string& what) {
    fail(what + "\n  launch of " + function_name(grid.function) + ", grid " + text(grid.blocks) +
         ", block " + text(grid.threads));
  };
  const dim3& blocks = grid.blocks;
  const dim3& threads = grid.threads;
  const std::uint64_t block_size = std::uint64_t{threads.x} * threads.y * threads.z;
  if (block_size == 0 || block_size > kMaxThreads || threads.x > 1024 || threads.y > 1024 ||
      threads.z > 64) {
    refuse("a block has 1 to 1024 threads, at most 1024 x 1024 x 64");
  }
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > 0x7fffffffU ||
      blocks.y > 65535 || blocks.z > 65535) {
    refuse("a grid has at least one block and at most 2147483647 x 65535 x 65535");
  }
  if (grid.shared_bytes > kMaxSharedBytes) {
    refuse(std::to_string(grid.shared_bytes) + " bytes of dynamic shared memory: at most " +
           std::to_string(kMaxSharedBytes) + " on any device");
  }
  if (grid.shared_bytes > allowed_shared_bytes) {
    refuse(std::to_string(grid.shared_bytes) +
           " bytes of dynamic shared memory: " + std::to_string(allowed_shared_bytes) +
           " allowed (cudaFuncAttributeMaxDynamicSharedMemorySize)");
  }
  for (const auto& variable : shared_variables()) {
    if (variable.bytes > kDefaultSharedBytes) {
      refuse("shared variable " + variable.name + " has " + std::to_string(variable.bytes) +
             " bytes: at most " + std::to_string(kDefaultSharedBytes));
    }
  }
}

void run_grid(const Grid& grid) {
  if (running != nullptr) fail("a kernel is launched by a kernel");
  const auto memory = shared_buffer(grid.shared_bytes);
  dynamic_shared = memory.get();
  running = &grid;
  gridDim = grid.blocks;
  blockDim = grid.threads;
  const std::uint64_t count = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  RandomWalk walk(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t block = walk.next();
    blockIdx.x = static_cast<unsigned>(block % gridDim.x);
    blockIdx.y = static_cast<unsigned>(block / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(block / gridDim.x / gridDim.y);
    poison_shared_memory();
    run_block(grid.thread);
  }
  running = nullptr;
  dynamic_shared = nullptr;
  ++totals.launches;
  totals.blocks += count;
  totals.threads += count * grid.threads.x * grid.threads.y * grid.threads.z;
}

}  // namespace chaski::cuda_model

unsigned char* chaski_cuda_model_dynamic_shared() {
  using namespace chaski::cuda_model;
  if (running == nullptr) fail("dynamic shared memory is asked for outside of a kernel");
  if (dynamic_shared == nullptr) fail("the launch asked for no dynamic shared memory");
  return dynamic_shared;
}
