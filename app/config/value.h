#pragma once

#include <string>
#include <toml++/toml.h>

#include "app/config/schema.h"

namespace chaski {

// Where a value was given, as errors name it: "run.toml:7" or "--set optimizer.lr=0".
using ConfigOrigin = std::string;

// Throws std::invalid_argument: "<origin>: <message>" on one line, whatever of the file's text or
// of the command line the message repeats, and a hint unless it is empty.
[[noreturn]] void refuse_config(const ConfigOrigin& origin, const std::string& message,
                                const std::string& hint);

// Writes a TOML value into the member of `config` that `key` sets. Throws std::invalid_argument
// where it has another type or is not in the key's range or choices.
void assign_config_value(TrainConfig& config, const ConfigKey& key, const toml::node& value,
                         const ConfigOrigin& origin);

}  // namespace chaski
