#pragma once

#include <cuda_runtime_api.h>
#include <memory>
#include <string>
#include <typeindex>
#include <unordered_map>

#include "kernels/device/device.h"
#include "kernels/device/device_backend.h"

namespace chaski::cuda {

// Throws std::runtime_error naming what was asked, the device and CUDA's own word for the failure.
void check(cudaError_t status, const char* what);
// Throws std::invalid_argument: a block of the kernel asks for more shared memory than the current
// device has.
[[noreturn]] void refuse_shared_bytes(const char* kernel, std::size_t bytes);

// A GPU and the stream on which all ops of a Device run, in order.
class Context final : public DeviceBackend {
 public:
  // Throws std::invalid_argument where the driver is missing or too old or there is no such GPU.
  explicit Context(int ordinal);
  ~Context() override;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void* allocate(std::int64_t bytes) override;
  void free(void* data, std::int64_t bytes) override;
  void synchronize() override;
  std::unique_ptr<HostReader> create_reader() override;
  std::unique_ptr<HostWriter> create_writer() override;
  std::unique_ptr<OpRecording> create_recording() override;
  std::string describe() const override;

  int ordinal() const { return ordinal_; }
  cudaStream_t stream() const { return stream_; }
  int num_multiprocessors() const { return num_multiprocessors_; }
  // What a library keeps for this device (handles, plans): one object of each type, made when first
  // asked for.
  template <typename T>
  T& state() {
    std::shared_ptr<void>& entry = states_[std::type_index(typeid(T))];
    if (!entry) entry = std::make_shared<T>();
    return *static_cast<T*>(entry.get());
  }

 private:
  int ordinal_;
  int num_multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unordered_map<std::type_index, std::shared_ptr<void>> states_;
};

// Of a Device whose backend is CUDA.
Context& context_of(Device& device);
inline cudaStream_t stream_of(Device& device) {
  return context_of(device).stream();
}

}  // namespace chaski::cuda
