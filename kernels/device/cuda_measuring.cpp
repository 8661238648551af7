#include "kernels/device/cuda_measuring.h"

#include <vector>

#include "kernels/device/cuda_context.h"

namespace chaski::cuda {
namespace {

class EventClock final : public DeviceClock {
 public:
  explicit EventClock(cudaStream_t stream) : stream_(stream) {}
  ~EventClock() override {
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  EventClock(const EventClock&) = delete;
  EventClock& operator=(const EventClock&) = delete;

  std::size_t mark() override {
    if (count_ == events_.size()) {
      cudaEvent_t event = nullptr;
      check(cudaEventCreate(&event), "creating an event");
      events_.push_back(event);
    }
    check(cudaEventRecord(events_[count_], stream_), "recording an event");
    return count_++;
  }
  double seconds_between(std::size_t first, std::size_t last) override {
    check(cudaEventSynchronize(events_.at(last)), "waiting for an event");
    check(cudaEventSynchronize(events_.at(first)), "waiting for an event");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, events_[first], events_[last]), "timing");
    return 1e-3 * static_cast<double>(milliseconds);
  }
  void clear() override { count_ = 0; }

 private:
  cudaStream_t stream_;
  std::vector<cudaEvent_t> events_;  // the first count_ are recorded
  std::size_t count_ = 0;
};

}  // namespace

std::unique_ptr<DeviceClock> create_event_clock(Device& device) {
  return std::make_unique<EventClock>(stream_of(device));
}

DeviceProperties device_properties(Device& device) {
  int cache_bytes = 0;
  check(cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, context_of(device).ordinal()),
        "asking for the size of the cache");
  std::size_t free_bytes = 0;
  std::size_t memory_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &memory_bytes), "asking for the size of the memory");
  return {cache_bytes, static_cast<std::int64_t>(memory_bytes),
          static_cast<std::int64_t>(free_bytes)};
}

}  // namespace chaski::cuda
