#include "kernels/device/clock.h"

#include <chrono>
#include <vector>

#include "kernels/device/cuda_measuring.h"
#include "kernels/device/dispatch.h"

namespace chaski {
namespace {

class SteadyClock final : public DeviceClock {
 public:
  std::size_t mark() override {
    moments_.push_back(std::chrono::steady_clock::now());
    return moments_.size() - 1;
  }
  double seconds_between(std::size_t first, std::size_t last) override {
    return std::chrono::duration<double>(moments_.at(last) - moments_.at(first)).count();
  }
  void clear() override { moments_.clear(); }

 private:
  std::vector<std::chrono::steady_clock::time_point> moments_;
};

}  // namespace

std::unique_ptr<DeviceClock> create_steady_clock() {
  return std::make_unique<SteadyClock>();
}

std::unique_ptr<DeviceClock> create_device_clock(Device& device) {
  if (device.is_counting()) return create_steady_clock();
  CHASKI_CUDA_OP(device, create_event_clock(device));
  return create_steady_clock();
}

DeviceProperties device_properties(Device& device) {
  if (device.is_counting()) return {};
  CHASKI_CUDA_OP(device, device_properties(device));
  return {};
}

}  // namespace chaski
