#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace chaski {

// What all processes of this host can have together, bytes.
struct MachineMemory {
  std::int64_t bytes = 0;       // 0: the system does not tell
  std::int64_t swap_bytes = 0;  // beside it, on disk
  // Where less is allowed than the machine has: by a control group, that of a container or of a
  // batch job.
  bool limited = false;

  bool known() const { return bytes > 0; }
  // "of this machine" or what limits it, to follow a number.
  std::string whose() const;
};

// From /proc/meminfo and the limits of this process's control group and of those that it is in,
// versions 1 and 2. `root` stands for / in tests.
MachineMemory machine_memory(const std::filesystem::path& root = "/");

}  // namespace chaski
