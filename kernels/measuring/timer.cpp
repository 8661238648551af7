#include "kernels/measuring/timer.h"

#include "kernels/elementwise/elementwise.h"

namespace chaski {

DeviceTimer::DeviceTimer(Device& device)
    : device_(device),
      clock_(create_device_clock(device)),
      cache_bytes_(device_properties(device).cache_bytes) {}

void DeviceTimer::start() {
  clock_->clear();
  if (cache_bytes_ > 0) {
    Workspace::Frame frame(device_);
    fill(frame.f32({2 * cache_bytes_ / static_cast<std::int64_t>(sizeof(float))}), 0.0f);
  }
  clock_->mark();
}

double DeviceTimer::stop() {
  return clock_->seconds_between(0, clock_->mark());
}

}  // namespace chaski
