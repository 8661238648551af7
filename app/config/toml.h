#pragma once

#include <string>
#include <string_view>

namespace chaski {

// A string as a TOML basic string, in quotes and on one line. `text` is UTF-8.
std::string quote_toml(std::string_view text);
// The shortest TOML float that reads back as the same finite number.
std::string double_to_toml(double value);

}  // namespace chaski
