#pragma once

// Scalar functions that the compiler turns into vector code inside `#pragma omp simd` loops. For
// x_cpu.cpp files only (see cpu_kernels.h): internal linkage, no library headers. They rely on the
// order of operations as written: never compile them with -fassociative-math or -ffinite-math-only.

#include <cstdint>

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorLanes = 16;  // floats in a vector register
#elif defined(__AVX2__)
constexpr int kVectorLanes = 8;
#else
constexpr int kVectorLanes = 4;
#endif

// e^x to 2 ulp over all floats: results below the normal range are rounded to subnormals or 0,
// exp(-inf) = 0, exp(large) = inf, NaN stays NaN. Cody-Waite reduction with the polynomial of
// Cephes' expf.
[[gnu::always_inline]] inline float exp_of(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  x = x < -105.0f ? -105.0f : x;         // false for NaN, which passes through
  x = x > 89.0f ? 89.0f : x;
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, each a normal number. For NaN the integer is arbitrary and harmless.
  const std::int32_t exponent = static_cast<std::int32_t>(
      __builtin_bit_cast(std::uint32_t, shifted) - __builtin_bit_cast(std::uint32_t, kRound));
  const std::int32_t half = exponent >> 1;
  const std::uint32_t low = static_cast<std::uint32_t>(half + 127) << 23;
  const std::uint32_t high = static_cast<std::uint32_t>(exponent - half + 127) << 23;
  return p * __builtin_bit_cast(float, low) * __builtin_bit_cast(float, high);
}

[[gnu::always_inline]] inline float sigmoid_of(float x) {
  return 1.0f / (1.0f + exp_of(-x));
}

}  // namespace
}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
