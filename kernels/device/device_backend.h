#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/device/host_reader.h"
#include "kernels/device/host_writer.h"

namespace chaski {

// Records what is queued on a device, instead of doing it, so that it can be queued again at once.
class OpRecording {
 public:
  virtual ~OpRecording() = default;
  virtual void begin() = 0;
  // What stood in the way, in the library's words; empty when all that was queued since begin() can
  // be launched.
  virtual std::string end() = 0;
  virtual void launch() = 0;
};

// What a Device asks of the hardware that it stands for.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;

  // Zeroed memory, aligned to Device::kAlignment. Null where there is not enough. `bytes` is a
  // positive multiple of that alignment.
  virtual void* allocate(std::int64_t bytes) = 0;
  virtual void free(void* data, std::int64_t bytes) = 0;
  // Waits until everything queued is done. Throws std::runtime_error for what failed meanwhile.
  virtual void synchronize() = 0;
  // See kernels/device/host_reader.h.
  virtual std::unique_ptr<HostReader> create_reader() = 0;
  // See kernels/device/host_writer.h.
  virtual std::unique_ptr<HostWriter> create_writer() = 0;
  // Null where queueing costs nothing that recording could save.
  virtual std::unique_ptr<OpRecording> create_recording() = 0;
  // In a few words, e.g. "NVIDIA H200, 139 GiB, driver 13.0, runtime 13.0".
  virtual std::string describe() const = 0;
};

// Of Device::create_counting: its memory is addresses alone.
std::unique_ptr<DeviceBackend> create_counting_backend(std::string description);
// Defined by the CUDA backend where it is built, else by cuda_absent.cpp.
std::unique_ptr<DeviceBackend> create_cuda_backend(int ordinal);
int num_cuda_devices();
// Why there is no such GPU to use, and a hint; for the end of a sentence. Empty where there is one.
std::string cuda_obstacle(int ordinal);
// Its place in the machine, whatever number it has for this process: a PCI address.
std::string cuda_device_address(int ordinal);
bool is_built_with_cuda();
// Whether there is a driver of whatever version; a build without CUDA finds none.
bool has_cuda_driver();

}  // namespace chaski
