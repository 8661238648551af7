#pragma once

#include <cstdint>
#include <memory>

namespace chaski {

class Device;

// Reads a device's memory from any one thread at a time, while the thread that drives the device
// goes on queueing work on it. Sees what was queued when this was made; whoever changes the memory
// later must see to it that nobody reads.
class HostReader {
 public:
  virtual ~HostReader() = default;
  // Complete on return. Throws std::runtime_error where the device fails.
  virtual void read(void* to, const void* from, std::int64_t bytes) = 0;
};

// Pinned memory that a GPU's reader copies through.
inline constexpr std::int64_t kPinnedReaderBytes = std::int64_t{4} << 20;

// On the thread that drives the device, and not to outlive it.
std::unique_ptr<HostReader> create_host_reader(Device& device);

}  // namespace chaski
