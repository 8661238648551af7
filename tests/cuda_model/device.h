#pragma once

// Forced in front of a `.cu` file that the host compiler is to read (`-x c++ -include device.h`):
// what nvcc would supply, for one process without a GPU. Test-only.
//
// The model: the blocks of a grid run one after the other in a random order; the threads of a block
// are fibers that run in a random order from one point of synchronisation to the next (no lockstep
// of a warp is assumed). What it checks, each error being a message on stderr and abort():
//   - every thread of the block reaches the same __syncthreads(), every lane of a mask the same
//     warp primitive; lanes read by a shuffle are lanes of the mask;
//   - limits of a launch: threads of a block, dimensions of the grid, shared memory;
//   - with AddressSanitizer and UndefinedBehaviorSanitizer: bounds and lifetimes of device, pinned
//     and shared memory, alignment of vector accesses, overflows; host code that touches device
//     memory crashes;
//   - shared and device memory never written reads as NaN / -1, and a missing barrier shows as a
//     wrong result for some order of threads (`CHASKI_CUDA_MODEL_SEED` gives another order);
//   - asynchronous work waits until something synchronises with it, so that a missing
//     synchronisation shows too (see control.h for this and other settings).
// What it cannot: speed; accuracy of the fast intrinsics (__expf is expf here); races between
// points of synchronisation that need two threads at once; a memory order weaker than sequential
// consistency (fences do nothing); interleaved blocks (a block that waits for another one never
// ends); registers and __launch_bounds__; tensor cores, asynchronous copies, clusters, inline PTX,
// textures.
//
// Shared variables' bounds: UBSan sees indices of arrays; ASan has red zones around those with
// internal linkage (kernels in unnamed namespaces, static templates), not around those of inline
// functions and templates with external linkage, which the linker merges.

#include <cstddef>
#include <cuda_runtime.h>
#include <functional>
#include <math.h>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define CHASKI_CUDA_MODEL 1

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

/// The running block's dynamic shared memory: exactly as many bytes as the launch asked for.
unsigned char* chaski_cuda_model_dynamic_shared();

// Marked in the symbol's name, by which the model finds them (GCC drops sections of templates'
// variables).
#undef __shared__
#define __shared__ static __attribute__((abi_tag("chaski_shared")))
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace chaski::cuda_model {

/// Queues a grid whose threads each call `thread`; `function` is the kernel's address.
cudaError_t launch_grid(const cudaLaunchConfig_t& config, const void* function,
                        std::function<void()> thread);

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                          Arguments&&... arguments) {
  return launch_grid(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, values = std::tuple<std::decay_t<Parameters>...>(
                   std::forward<Arguments>(arguments)...)] { std::apply(kernel, values); });
}

}  // namespace chaski::cuda_model

// The header's template passes untyped pointers on.
#define cudaLaunchKernelEx ::chaski::cuda_model::launch_kernel

// The header's forms for typed kernels, which only nvcc sees.
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                          void (*kernel)(Parameters...),
                                                          int block_size,
                                                          std::size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), block_size, shared_bytes);
}

#include "tests/cuda_model/device_intrinsics.h"
#include "tests/cuda_model/device_synchronisation.h"
