#pragma once

#include <memory>

#include "kernels/device/clock.h"

namespace chaski::cuda {

// As create_device_clock and device_properties of kernels/device/clock.h, for a GPU.
std::unique_ptr<DeviceClock> create_event_clock(Device& device);
DeviceProperties device_properties(Device& device);

}  // namespace chaski::cuda
