#pragma once

#include <memory>

#include "kernels/device/device.h"

namespace chaski {

// The memory of a counting device (Device::create_counting): addresses alone.
std::unique_ptr<DeviceBackend> create_counting_backend(Backend backend);

}  // namespace chaski
