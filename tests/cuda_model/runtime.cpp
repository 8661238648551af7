#include "tests/cuda_model/runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/grid.h"

namespace chaski::cuda_model {

// Device, errors, functions, launches: the rest of the false runtime.

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int chosen_device = 0;

/// Those of the machine that this process may see, by their place there.
const std::vector<int>& visible_devices() {
  static const std::vector<int> devices = [] {
    const char* const text = std::getenv("CHASKI_CUDA_MODEL_DEVICES");
    const int present = text == nullptr ? 1 : std::clamp(std::atoi(text), 0, 16);
    const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
    std::vector<int> result;
    if (visible == nullptr) {
      for (int device = 0; device < present; ++device) result.push_back(device);
      return result;
    }
    std::istringstream list(visible);
    for (std::string entry; std::getline(list, entry, ',');) {
      if (std::stoi(entry) < present) result.push_back(std::stoi(entry));
    }
    return result;
  }();
  return devices;
}

int num_devices() {
  return static_cast<int>(visible_devices().size());
}

/// Dynamic shared memory that cudaFuncSetAttribute has allowed.
std::map<const void*, std::size_t>& allowed_shared_bytes() {
  static auto* const allowed = new std::map<const void*, std::size_t>;
  return *allowed;
}

std::size_t allowed_for(const void* function) {
  const auto found = allowed_shared_bytes().find(function);
  return found == allowed_shared_bytes().end() ? kDefaultSharedBytes : found->second;
}

cudaError_t attribute(int* value, cudaDeviceAttr which) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(kDefaultSharedBytes);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kMaxSharedBytes);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(kMaxSharedBytes + 1024);
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 14;
      return cudaSuccess;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrConcurrentKernels:
      *value = 1;
      return cudaSuccess;
    default:
      fail("cudaDeviceGetAttribute(" + std::to_string(which) + ") is not modelled");
  }
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

#define CHASKI_CUDA_MODEL_ERROR(name, text) \
  ErrorText {                               \
    name, #name, text                       \
  }
constexpr ErrorText kErrorTexts[] = {
    CHASKI_CUDA_MODEL_ERROR(cudaSuccess, "no error"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInvalidValue, "invalid argument"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInitializationError, "initialization error"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInsufficientDriver,
                            "CUDA driver version is insufficient for CUDA runtime version"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorNoKernelImageForDevice,
                            "no kernel image is available for execution on the device"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorIllegalState,
                            "the operation cannot be performed in the present state"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorNotReady, "device not ready"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorHostMemoryAlreadyRegistered,
                            "part or all of the requested memory range is already mapped"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorHostMemoryNotRegistered,
                            "pointer does not correspond to a registered memory region"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorNotSupported, "operation not supported"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureUnsupported,
                            "operation not permitted when stream is capturing"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureInvalidated,
                            "operation failed due to a previous error during capture"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureMerge,
                            "operation would result in a merge of separate capture sequences"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureUnmatched,
                            "capture was not ended in the same stream as it began"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureIsolation,
                            "dependency created on uncaptured work in another stream"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorStreamCaptureImplicit,
                            "operation would make the legacy stream depend on a capturing stream"),
    CHASKI_CUDA_MODEL_ERROR(cudaErrorCapturedEvent,
                            "operation not permitted on an event last recorded in a capturing "
                            "stream"),
};
#undef CHASKI_CUDA_MODEL_ERROR

}  // namespace

std::recursive_mutex& api_mutex() {
  static auto* const mutex = new std::recursive_mutex;
  return *mutex;
}

cudaError_t remembered(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int current_device() {
  return chosen_device;
}

long long clock_ticks() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

cudaError_t launch_grid(const cudaLaunchConfig_t& config, const void* function,
                        std::function<void()> thread) {
  return call([&] {
    if (num_devices() == 0) return cudaErrorNoDevice;
    Grid grid{config.gridDim, config.blockDim, config.dynamicSmemBytes, function,
              std::move(thread)};
    check_limits(grid, allowed_for(function));
    return submit(config.stream, [grid = std::move(grid)] { run_grid(grid); });
  });
}

}  // namespace chaski::cuda_model

using namespace chaski::cuda_model;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  return call([&] {
    *count = num_devices();
    return num_devices() == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return call([&] {
    if (num_devices() == 0) return cudaErrorNoDevice;
    if (device < 0 || device >= num_devices()) return cudaErrorInvalidDevice;
    chosen_device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return call([&] {
    *device = chosen_device;
    return num_devices() == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  return call([&] {
    if (device < 0 || device >= num_devices()) return cudaErrorInvalidDevice;
    return attribute(value, which);
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call([&] {
    if (device < 0 || device >= num_devices()) return cudaErrorInvalidDevice;
    std::memset(static_cast<void*>(properties), 0, sizeof(*properties));
    std::snprintf(properties->name, sizeof(properties->name), "CUDA execution model (no GPU)");
    std::size_t free_bytes = 0;
    cudaMemGetInfo(&free_bytes, &properties->totalGlobalMem);
    const auto value = [](cudaDeviceAttr which) {
      int result = 0;
      attribute(&result, which);
      return result;
    };
    properties->major = value(cudaDevAttrComputeCapabilityMajor);
    properties->minor = value(cudaDevAttrComputeCapabilityMinor);
    properties->multiProcessorCount = value(cudaDevAttrMultiProcessorCount);
    properties->maxThreadsPerBlock = kMaxThreads;
    properties->maxThreadsPerMultiProcessor = value(cudaDevAttrMaxThreadsPerMultiProcessor);
    properties->warpSize = 32;
    properties->sharedMemPerBlock = kDefaultSharedBytes;
    properties->sharedMemPerBlockOptin = kMaxSharedBytes;
    properties->sharedMemPerMultiprocessor = kMaxSharedBytes + 1024;
    properties->l2CacheSize = value(cudaDevAttrL2CacheSize);
    properties->unifiedAddressing = 1;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  return call([&] {
    if (device < 0 || device >= num_devices()) return cudaErrorInvalidDevice;
    const int place = visible_devices()[static_cast<std::size_t>(device)];
    std::snprintf(text, static_cast<std::size_t>(length), "0000:%02x:00.0", place);
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  const char* const given = std::getenv("CHASKI_CUDA_MODEL_DRIVER");
  *version = given == nullptr ? CUDART_VERSION : std::atoi(given);
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError(void) {
  return last_error;
}

const char* cudaGetErrorString(cudaError_t error) {
  for (const auto& entry : kErrorTexts) {
    if (entry.error == error) return entry.text;
  }
  return "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) {
  for (const auto& entry : kErrorTexts) {
    if (entry.error == error) return entry.name;
  }
  return "unrecognized error code";
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  return call([&] {
    if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || static_cast<std::size_t>(value) > kMaxSharedBytes) {
      return cudaErrorInvalidValue;
    }
    allowed_shared_bytes()[function] = static_cast<std::size_t>(value);
    return cudaSuccess;
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return call([&] {
    if (std::getenv("CHASKI_CUDA_MODEL_NO_CODE") != nullptr) return cudaErrorNoKernelImageForDevice;
    *attributes = {};
    attributes->maxThreadsPerBlock = kMaxThreads;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(allowed_for(function));
    attributes->numRegs = 32;
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*,
                                                                   int block_size,
                                                                   std::size_t shared_bytes,
                                                                   unsigned) {
  return call([&] {
    if (block_size < 1 || block_size > kMaxThreads) return cudaErrorInvalidValue;
    // A block has 1 KiB of shared memory besides its own.
    const auto by_memory = static_cast<int>((kMaxSharedBytes + 1024) / (shared_bytes + 1024));
    *blocks = std::min({32, 2048 / block_size, by_memory});
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int block_size,
                                                          std::size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size,
                                                                shared_bytes, 0);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  fail("a kernel is launched by a file that was not compiled with tests/cuda_model/device.h");
}

}  // extern "C"
