#include "app/job/devices.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/device_backend.h"
#include "parallel/nccl/nccl.h"

namespace chaski {
namespace {

DeviceChoice choose_cpu(DeviceConfig config, Communicator& communicator) {
  config.backend = BackendChoice::cpu;
  return choose_device(config, communicator);
}

// "0 to 3", "0, 2, 4 to 6" of ascending numbers.
std::string format_ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
    if (end - i > 1) text += fmt::format(" to {}", numbers[end - 1]);
    i = end;
  }
  return text;
}

}  // namespace

DeviceChoice choose_job_device(const DeviceConfig& config, Communicator& communicator) {
  if (communicator.size() == 1) return choose_device(config, communicator);
  if (is_built_with_cuda() && !is_built_with_nccl()) {
    if (config.backend != BackendChoice::cuda) return choose_cpu(config, communicator);
    throw std::invalid_argument(
        fmt::format("device.backend is \"cuda\" with {} processes, but this program is built "
                    "without NCCL\nhint: start one process, set \"cpu\", or build where nccl.h and "
                    "libnccl are found",
                    communicator.size()));
  }
  const DeviceChoice choice = choose_device(config, communicator);
  std::array<std::int64_t, 1> gpus{choice.backend == Backend::cuda ? 1 : 0};
  communicator.all_reduce_sum(std::span<std::int64_t>(gpus));
  const bool mixed = gpus[0] > 0 && gpus[0] < communicator.size();
  return mixed ? choose_cpu(config, communicator) : choice;
}

std::vector<std::string> describe_job_devices(Communicator& communicator, int root, Device& device,
                                              const DeviceChoice& choice) {
  std::string own = describe_device(device, choice);
  if (communicator.size() == 1) return {own};
  if (device.backend() == Backend::cuda) own += ", " + nccl_version();
  const std::vector<std::string> all =
      communicator.gather(MpiRuntime::host_name() + ": " + own, root);
  std::vector<std::string> lines;
  std::vector<bool> told(all.size(), false);
  for (std::size_t first = 0; first < all.size(); ++first) {
    if (told[first]) continue;
    std::vector<int> ranks;
    for (std::size_t rank = first; rank < all.size(); ++rank) {
      if (all[rank] != all[first]) continue;
      told[rank] = true;
      ranks.push_back(static_cast<int>(rank));
    }
    lines.push_back(fmt::format("rank{} {} on {}", ranks.size() > 1 ? "s" : "",
                                format_ranges(ranks), all[first]));
  }
  return lines;
}

}  // namespace chaski
