#include <cuda_runtime.h>

#include "kernels/device/cuda_code.h"

namespace chaski::cuda {
namespace {

__global__ void probe() {}

}  // namespace

bool has_code_for_current_device() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe);
  if (status == cudaSuccess) return true;
  cudaGetLastError();  // it would be reported again by the next launch
  return status != cudaErrorNoKernelImageForDevice && status != cudaErrorInvalidDeviceFunction;
}

}  // namespace chaski::cuda
