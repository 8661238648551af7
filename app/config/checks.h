#pragma once

#include "app/config/config.h"

namespace chaski {

// What no single value of a config shows to be wrong: keys that contradict each other and what is
// not built. Throws std::invalid_argument whose message begins with the key at fault.
void check_config(const TrainConfig& config);

}  // namespace chaski
