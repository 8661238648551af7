#pragma once

#include <array>
#include <cstdint>

namespace chaski {

// What an op, or a product of one shape, does in all its calls.
struct OpCount {
  const char* op;                     // as in a Profile (kernels/device/profile.h)
  std::array<std::int64_t, 3> shape;  // a product's m, n, k; else zeros
  std::int64_t calls;
  double flops;  // in products and attention; of other ops, which are bound by memory, none
  double bytes;  // of the operands, once for each reading and each writing
};

}  // namespace chaski
