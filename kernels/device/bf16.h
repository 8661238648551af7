#pragma once

#include <cstdint>

namespace chaski {

// Of internal linkage, and without the library's bit_cast: the CPU's inner loops use them too (see
// cpu_kernels.h).

// The upper half of a float, rounded to nearest with ties to even; NaN stays NaN.
static constexpr std::uint16_t bf16_from_float(float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
static constexpr float float_from_bf16(std::uint16_t x) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x) << 16);
}

}  // namespace chaski
