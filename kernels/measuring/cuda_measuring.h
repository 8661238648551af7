#pragma once

#include <memory>

#include "kernels/measuring/timer.h"

namespace chaski::cuda {

// As create_device_clock and device_properties of kernels/measuring/timer.h, for a GPU.
std::unique_ptr<DeviceClock> create_event_clock(Device& device);
DeviceProperties device_properties(Device& device);

}  // namespace chaski::cuda
