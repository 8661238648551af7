#pragma once

#include <cstdint>
#include <string>

namespace chaski {

// Numbers as people read them; each at most 8 characters wide.
std::string format_bytes(std::int64_t bytes);  // "512 B", "1.20 GiB": powers of 1024
std::string format_count(double count);        // "950", "12.3k", "4.56M": powers of 1000
std::string format_duration(double seconds);   // "7.2s", "3m05s", "2h07m", "3d04h"; "-" if unknown

// "1 process", "2 processes"; `plural` where it is not the singular with an s.
std::string format_number_of(std::int64_t count, const std::string& singular,
                             const std::string& plural = "");

}  // namespace chaski
