#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/device/device.h"

namespace chaski {

// Moments of what is queued on a device: of the steady clock on a CPU, events of the stream on a
// GPU, which does not wait for them.
class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  // The moment when all that was queued until now is done. Returns its number: 0, 1, …
  virtual std::size_t mark() = 0;
  // Waits until both are past. Throws std::runtime_error for what failed before.
  virtual double seconds_between(std::size_t first, std::size_t last) = 0;
  // Forgets all moments; the next one is 0 again.
  virtual void clear() = 0;
};
std::unique_ptr<DeviceClock> create_steady_clock();
std::unique_ptr<DeviceClock> create_device_clock(Device& device);

// Of the time of this host.
inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Zeros: not known, as of a CPU or a counting device.
struct DeviceProperties {
  std::int64_t cache_bytes = 0;   // of the last-level cache
  std::int64_t memory_bytes = 0;  // of all of the device
  std::int64_t free_bytes = 0;    // that can be allocated now
};
DeviceProperties device_properties(Device& device);

}  // namespace chaski
