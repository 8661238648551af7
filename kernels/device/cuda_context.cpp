#include "kernels/device/cuda_context.h"

#include <array>
#include <cstdlib>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/cuda_code.h"

namespace chaski {
namespace cuda {
namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

// As cuda_obstacle(), of `count` GPUs and what CUDA says when asked for them.
std::string obstacle(int ordinal, int count, cudaError_t status) {
  const int driver = driver_version();
  if (driver == 0) {
    return "no NVIDIA driver was found\nhint: install it (nvidia-smi shows whether it works), or "
           "choose \"cpu\"";
  }
  if (driver < runtime_version() / 1000 * 1000 || status == cudaErrorInsufficientDriver) {
    return fmt::format(
        "the driver supports CUDA {} and this program needs {}\nhint: update the driver, or build "
        "with the toolkit of CUDA {}",
        version_text(driver), version_text(runtime_version()), version_text(driver));
  }
  if (status != cudaSuccess && status != cudaErrorNoDevice) {
    return fmt::format("CUDA cannot be used: {}\nhint: nvidia-smi shows the state of the GPUs",
                       cudaGetErrorString(status));
  }
  if (ordinal >= 0 && ordinal < count) return "";
  return fmt::format(
      "{}\nhint: CUDA_VISIBLE_DEVICES may hide some; \"cpu\" needs none",
      count == 0 ? "there is no GPU" : fmt::format("GPU {} is none of the {}", ordinal, count));
}

void require_code(int ordinal) {
  if (has_code_for_current_device()) return;
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal),
        "asking for the compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal),
        "asking for the compute capability");
  throw std::invalid_argument(fmt::format(
      "cuda:{} has compute capability {}.{}, for which this program was not compiled\nhint: build "
      "with -DCMAKE_CUDA_ARCHITECTURES={}{}, or choose \"cpu\"",
      ordinal, major, minor, major, minor));
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  int ordinal = -1;
  cudaGetDevice(&ordinal);
  throw std::runtime_error(fmt::format("{} failed on cuda:{}: {} ({})", what, ordinal,
                                       cudaGetErrorString(status), cudaGetErrorName(status)));
}

void refuse_shared_bytes(const char* kernel, std::size_t bytes) {
  cudaGetLastError();  // it would be reported again by the next launch
  int ordinal = -1;
  cudaGetDevice(&ordinal);
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal),
        "asking for the shared memory of a block");
  throw std::invalid_argument(
      fmt::format("{} needs {} bytes of shared memory in a block for operands of this size, and "
                  "cuda:{} has {} at most\nhint: a smaller size, or the backend \"cpu\"",
                  kernel, bytes, ordinal, most));
}

Context::Context(int ordinal) : ordinal_(ordinal) {
  // Read when the first context is made: with the usual 8 queues of the hardware streams share
  // some, and one that waits for another process would hold up one that does not.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  if (const std::string why = cuda_obstacle(ordinal); !why.empty()) {
    throw std::invalid_argument(fmt::format("device cuda:{} was asked for, but {}", ordinal, why));
  }
  check(cudaSetDevice(ordinal), "choosing the device");
  require_code(ordinal);
  check(cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, ordinal),
        "asking for the number of multiprocessors");
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

Context::~Context() {
  cudaStreamSynchronize(stream_);
  states_.clear();
  cudaStreamDestroy(stream_);
}

void* Context::allocate(std::int64_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<std::size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it would be reported again by the next launch
    return nullptr;
  }
  check(status, "cudaMalloc");
  check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), stream_), "zeroing memory");
  return data;
}

void Context::free(void* data, std::int64_t) {
  cudaStreamSynchronize(stream_);
  cudaFree(data);
}

void Context::synchronize() {
  check(cudaStreamSynchronize(stream_), "an operation queued before");
}

std::string Context::describe() const {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, ordinal_), "asking for the device's properties");
  return fmt::format("{}, {:.0f} GiB, compute capability {}.{}, driver CUDA {}, runtime {}",
                     properties.name, static_cast<double>(properties.totalGlobalMem) / (1 << 30),
                     properties.major, properties.minor, version_text(driver_version()),
                     version_text(runtime_version()));
}

Context& context_of(Device& device) {
  return static_cast<Context&>(device.hardware());
}

}  // namespace cuda

std::unique_ptr<DeviceBackend> create_cuda_backend(int ordinal) {
  return std::make_unique<cuda::Context>(ordinal);
}

int num_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string cuda_obstacle(int ordinal) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  return cuda::obstacle(ordinal, status == cudaSuccess ? count : 0, status);
}

std::string cuda_device_address(int ordinal) {
  std::array<char, 32> address{};
  cuda::check(cudaDeviceGetPCIBusId(address.data(), static_cast<int>(address.size()), ordinal),
              "asking for a device's address");
  return address.data();
}

bool is_built_with_cuda() {
  return true;
}

bool has_cuda_driver() {
  return cuda::driver_version() > 0;
}

}  // namespace chaski
