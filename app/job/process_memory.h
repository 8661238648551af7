#pragma once

#include <cstdint>

namespace chaski {

// Resident memory of this process in bytes: now, and the largest so far.
std::int64_t resident_bytes();
std::int64_t peak_resident_bytes();

}  // namespace chaski
