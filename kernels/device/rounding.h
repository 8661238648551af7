#pragma once

#include <cstdint>

namespace chaski {

// Of numbers that are not negative: count / by, and the next multiple of `by`.
constexpr std::int64_t divide_up(std::int64_t count, std::int64_t by) {
  return (count + by - 1) / by;
}
constexpr std::int64_t round_up(std::int64_t count, std::int64_t by) {
  return divide_up(count, by) * by;
}

}  // namespace chaski
