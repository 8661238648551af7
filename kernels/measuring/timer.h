#pragma once

#include <cstdint>
#include <memory>

#include "kernels/device/clock.h"

namespace chaski {

// How long work on a device takes by itself. On a GPU its caches are overwritten before, which also
// keeps it busy while the work is queued, so that queueing is not what is measured.
class DeviceTimer {
 public:
  explicit DeviceTimer(Device& device);
  void start();
  // Seconds since start(); waits for the device.
  double stop();

 private:
  Device& device_;
  std::unique_ptr<DeviceClock> clock_;
  std::int64_t cache_bytes_;
};

}  // namespace chaski
