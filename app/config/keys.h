#pragma once

#include <type_traits>
#include <vector>

#include "app/config/schema.h"

namespace chaski {

// The keys of each table of the config; config_schema.cpp puts them together.
std::vector<ConfigKey> run_keys();
std::vector<ConfigKey> model_keys();
std::vector<ConfigKey> moc_keys();
std::vector<ConfigKey> data_keys();
std::vector<ConfigKey> optimizer_keys();
std::vector<ConfigKey> schedule_keys();
std::vector<ConfigKey> parallel_keys();
std::vector<ConfigKey> fault_keys();
std::vector<ConfigKey> evaluation_keys();
std::vector<ConfigKey> checkpoint_keys();
std::vector<ConfigKey> log_keys();
std::vector<ConfigKey> device_keys();

// What their ranges and fields are written with.

inline ConfigRange at_least(double minimum) {
  return {.minimum = minimum};
}
inline ConfigRange above(double minimum) {
  return {.minimum = minimum, .minimum_excluded = true};
}
inline ConfigRange between(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum};
}
inline ConfigRange from_to_below(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum, .maximum_excluded = true};
}
constexpr double kMaxCount = 1e9;  // keeps products of two counts within 64 bits

template <typename Member>
ConfigField field_of(Member& member) {
  if constexpr (std::is_enum_v<Member>) {
    return choice(member);
  } else {
    return &member;
  }
}
// Of a table of TrainConfig.
template <auto Table, auto Member>
ConfigField field(TrainConfig& config) {
  return field_of((config.*Table).*Member);
}

}  // namespace chaski
