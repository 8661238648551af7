#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <functional>
#include <string>
#include <vector>

// What tests ask of the execution model besides the CUDA functions. The model is set by
//   CHASKI_CUDA_MODEL_SEED     order of blocks and threads (default 1)
//   CHASKI_CUDA_MODEL_LAZY     1 (default): asynchronous work waits until something synchronises
//                              with it; 0: it runs at once; 2: streams run at random moments
//   CHASKI_CUDA_MODEL_DEVICES  number of devices (default 1, 0 allowed)
//   CHASKI_CUDA_MODEL_MEMORY   bytes of each device (default 8 GiB)
//   CHASKI_CUDA_MODEL_DRIVER   its CUDA version, as cudaDriverGetVersion gives it (default: the
//                              toolkit's)
//   CHASKI_CUDA_MODEL_NO_CODE  set: kernels are not compiled for its devices
//   CHASKI_CUDA_MODEL_PROTECT  1 (default): host code that touches device memory crashes; 0: it may
namespace chaski::cuda_model {

/// Starts another series of random orders.
void set_seed(std::uint64_t seed);
/// Runs what is queued, then changes the mode.
void set_lazy(bool lazy);
/// Memory of each device, of which what is allocated already counts.
void set_memory_limit(std::size_t bytes);

/// Queues host code that may touch device memory behind the work of a stream, or records it when
/// the stream is captured: for what stands in for a library's call (cuBLASLt, cuDNN, NCCL).
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

struct Counts {
  std::uint64_t launches = 0;     // of grids, those of graphs included
  std::uint64_t graphs = 0;       // launched
  std::uint64_t allocations = 0;  // of device or pinned memory
  std::uint64_t blocks = 0;
  std::uint64_t threads = 0;
  std::uint64_t switches = 0;
};
/// Since the program began.
Counts counts();

/// Shared variables that AddressSanitizer has put no red zone around, as their linkage is external:
/// their bounds are checked only where an array is indexed.
std::vector<std::string> unguarded_shared_variables();

/// What comes of operations that wait for other processes when their communicator is aborted: they
/// end, as they should; they go on waiting, as on a GPU that hangs; or the call never returns. What
/// goes on waiting ends once aborts end it again. CHASKI_CUDA_MODEL_NCCL_ABORT = ends, leaves,
/// hangs.
enum class NcclAbort { kEnds, kLeaves, kHangs };
void set_nccl_abort(NcclAbort abort);

}  // namespace chaski::cuda_model
