#pragma once

#include <memory>

#include "kernels/device/tensor.h"

namespace chaski {

class Device;

// Copies to a device's memory in the order of the ops queued on it, without waiting for them: the
// host goes on while the device is busy. On the thread that drives the device.
class HostWriter {
 public:
  virtual ~HostWriter() = default;
  // `from`, of as many bytes as `to` has, is free again on return. Waits only for this writer's
  // previous copy.
  virtual void write(const void* from, const Tensor& to) = 0;
};

// Not to outlive the device.
std::unique_ptr<HostWriter> create_host_writer(Device& device);

}  // namespace chaski
