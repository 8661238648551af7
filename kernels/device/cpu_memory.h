#pragma once

#include <cstdint>

namespace chaski {

// Zeroed memory from the operating system, aligned to 64 bytes, from 2 MiB on to 2 MiB and advised
// to use huge pages. Returns null where there is not enough. `bytes` is a positive multiple of 64.
void* allocate_cpu_memory(std::int64_t bytes);
void free_cpu_memory(void* data, std::int64_t bytes);

}  // namespace chaski
