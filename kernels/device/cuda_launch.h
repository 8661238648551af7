#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "kernels/device/cuda_context.h"
#include "kernels/device/device.h"
#include "kernels/device/rounding.h"

namespace chaski::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;  // of dynamic shared memory
};

// Every kernel starts here. `name` stands in the error's message.
template <typename... Parameters, typename... Arguments>
void launch(Device& device, const char* name, const LaunchShape& shape,
            void (*kernel)(Parameters...), Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  // Above this a kernel must be told that it may.
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kSharedWithoutAsking) {
    const cudaError_t status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (status == cudaErrorInvalidValue) refuse_shared_bytes(name, shape.shared_bytes);
    check(status, name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream_of(device);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// A grid of one dimension with at least one block.
inline dim3 grid_of(std::int64_t blocks) {
  return dim3(static_cast<unsigned>(blocks < 1 ? 1 : blocks));
}

}  // namespace chaski::cuda
