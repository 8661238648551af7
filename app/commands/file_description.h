#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace chaski {

// What a file contains, as `chaski inspect --json` prints it. With `verify` every byte is read and
// checked, and damage throws std::runtime_error.

// A checkpoint, or all checkpoints of a run with the newest in detail.
nlohmann::ordered_json describe_checkpoint(const std::string& path, bool verify);
nlohmann::ordered_json describe_token_file(const std::string& path, bool verify);
// A file or directory; the format has no checksums.
nlohmann::ordered_json describe_safetensors(const std::string& path);

}  // namespace chaski
