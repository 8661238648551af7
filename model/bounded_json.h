#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace chaski {

// Parses JSON from a file of unknown origin. Throws std::runtime_error naming `source` when it is
// malformed or nested more deeply than anything that the project reads.
nlohmann::ordered_json parse_bounded_json(const std::string& text, const std::string& source);

}  // namespace chaski
