#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/safetensors.h"

namespace chaski {

inline constexpr const char* kSafetensorsFile = "model.safetensors";
inline constexpr const char* kSafetensorsIndex = "model.safetensors.index.json";
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;  // as the reference reader's

// The entries that the JSON header of `file` describes; offsets counted from the file's begin.
// Throws std::runtime_error naming `file` unless they fill the `data_bytes` after the header
// without gap or overlap, as the format demands.
std::vector<SafetensorsEntry> parse_safetensors_header(const std::string& header,
                                                       const std::string& file,
                                                       std::uint64_t data_bytes);

}  // namespace chaski
