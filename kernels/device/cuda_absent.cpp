#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/device_backend.h"

namespace chaski {

std::unique_ptr<DeviceBackend> create_cuda_backend(int ordinal) {
  throw std::invalid_argument(
      fmt::format("device cuda:{} was asked for, but {}", ordinal, cuda_obstacle(ordinal)));
}

int num_cuda_devices() {
  return 0;
}

std::string cuda_obstacle(int) {
  return "this program is built without CUDA\nhint: leave it out, or choose \"cpu\"; `cmake "
         "-DCHASKI_CUDA=ON` builds with it";
}

std::string cuda_device_address(int) {
  return "";
}

bool is_built_with_cuda() {
  return false;
}

bool has_cuda_driver() {
  return false;
}

}  // namespace chaski
