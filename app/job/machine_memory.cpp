#include "app/job/machine_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <system_error>

namespace chaski {
namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

// The number in a file; kUnlimited for "max", and where there is no such file.
std::int64_t limit_in(const std::filesystem::path& file) {
  std::int64_t bytes = 0;
  return std::ifstream(file) >> bytes ? bytes : kUnlimited;
}

struct Limits {
  std::int64_t memory = kUnlimited;
  std::int64_t swap = kUnlimited;

  void take(std::int64_t memory_limit, std::int64_t swap_limit) {
    memory = std::min(memory, memory_limit);
    swap = std::min(swap, swap_limit);
  }
};

// Of one group; either version's files are missing where the other's are.
void take_group(const std::filesystem::path& group, Limits& limits) {
  limits.take(limit_in(group / "memory.max"), limit_in(group / "memory.swap.max"));
  const std::int64_t memory = limit_in(group / "memory.limit_in_bytes");
  const std::int64_t both = limit_in(group / "memory.memsw.limit_in_bytes");
  limits.take(memory, both == kUnlimited ? kUnlimited : std::max<std::int64_t>(0, both - memory));
}

// A group and all that it is in, up to the mount. In a container the path may be one of the host's,
// which is not to be seen; the mount itself is then the container's group.
void take_groups(const std::filesystem::path& mount, const std::string& path, Limits& limits) {
  std::filesystem::path inside = std::filesystem::path(path).relative_path();
  for (;; inside = inside.parent_path()) {
    take_group(inside.empty() ? mount : mount / inside, limits);
    if (inside.empty()) return;
  }
}

// Lines of /proc/self/cgroup: "0::/path" (version 2) and "N:controllers:/path" (version 1).
Limits limits_of_groups(const std::filesystem::path& root) {
  const std::filesystem::path mounts = root / "sys/fs/cgroup";
  Limits limits;
  std::ifstream lines(root / "proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) take_groups(mounts, path, limits);
    if (controllers == "memory") take_groups(mounts / "memory", path, limits);
  }
  return limits;
}

// "MemTotal:       24608012 kB"
std::int64_t entry_of(const std::filesystem::path& meminfo, const std::string& name) {
  std::ifstream lines(meminfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string key;
    std::int64_t kibibytes = 0;
    if (words >> key >> kibibytes && key == name) return kibibytes * 1024;
  }
  return 0;
}

}  // namespace

std::string MachineMemory::whose() const {
  return limited ? "that its control group allows" : "of this machine";
}

MachineMemory machine_memory(const std::filesystem::path& root) {
  const std::filesystem::path meminfo = root / "proc/meminfo";
  MachineMemory memory{.bytes = entry_of(meminfo, "MemTotal:"),
                       .swap_bytes = entry_of(meminfo, "SwapTotal:")};
  const Limits limits = limits_of_groups(root);
  memory.swap_bytes = std::min(memory.swap_bytes, limits.swap);
  if (limits.memory < memory.bytes) {
    memory.bytes = limits.memory;
    memory.limited = true;
  }
  return memory;
}

}  // namespace chaski
