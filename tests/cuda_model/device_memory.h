#pragma once

#include <cstddef>

// Device memory of the model: a region of addresses of its own that only work of streams may touch.
// Host code that follows a pointer to it ends with a segmentation fault, unless
// CHASKI_CUDA_MODEL_PROTECT=0. What lies beyond an allocation, or was freed, is poisoned for
// AddressSanitizer; new memory is filled with 0xff.
namespace chaski::cuda_model {

/// Exactly `bytes`, aligned to 256; null if there is no room.
unsigned char* take_device_memory(std::size_t bytes);
/// Of what was taken. Its addresses are given out again only after a gigabyte of others.
void return_device_memory(unsigned char* memory, std::size_t bytes);

/// While one exists, device memory can be touched.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace chaski::cuda_model
