#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "app/config/config.h"

namespace chaski {

// The config that a checkpoint of this or of another version holds.
struct StoredConfig {
  TrainConfig config;
  std::vector<std::string> unknown;  // keys and tables that this version does not have, passed over
};
// Throws as parse_config() does when a known key has a value that this version does not allow.
StoredConfig parse_stored_config(std::string_view text, const std::string& source);

// What a run that goes on from a checkpoint does otherwise than the run that saved it, of what
// decides its course: "[data], device.activations, which this version does not have"; empty:
// nothing. `saved` is the stored config, `checkpoint` where it lies. Throws nothing for what
// another version wrote.
std::string changes_of_course(std::string_view saved, const std::string& checkpoint,
                              const TrainConfig& now);

}  // namespace chaski
