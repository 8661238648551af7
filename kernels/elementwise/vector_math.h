#pragma once

// Vectors of floats, and scalar functions that the compiler turns into vector code inside
// `#pragma omp simd` loops. For x_cpu.cpp files only (see cpu_kernels.h): internal linkage, no
// library headers. The functions rely on the order of operations as written: never compile them
// with -fassociative-math or -ffinite-math-only.

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

// A register's floats, wherever they lie, and the numbers of lanes for a shuffle of it.
typedef float Vector __attribute__((vector_size(4 * kVectorLanes), aligned(4), may_alias));
typedef std::int32_t LaneIndex __attribute__((vector_size(4 * kVectorLanes)));
// A LaneIndex for constant expressions, by __builtin_bit_cast.
struct Lanes {
  std::int32_t lane[kVectorLanes];
};

[[gnu::always_inline]] inline Vector& at(float* x) {
  return *reinterpret_cast<Vector*>(x);
}
[[gnu::always_inline]] inline const Vector& at(const float* x) {
  return *reinterpret_cast<const Vector*>(x);
}

// e^x = fraction · 2^n with n = the low bits of `shifted`, |n| < 2^8; fraction in [0.7, 1.42].
struct ExpParts {
  float fraction;
  std::uint32_t shifted;
};

constexpr float kExpRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer

// Cody-Waite reduction to r in [-ln 2 / 2, ln 2 / 2], then 1 + r + r² q(r) with q fitted to the
// least largest relative error (Remez): 3e-9, far below the rounding.
[[gnu::always_inline]] inline ExpParts split_exp(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;  // few bits: times n it is exact without FMA too
  constexpr float kLn2Low = -2.12194440e-4f;
  const float shifted = x * kLog2e + kExpRound;
  const float n = shifted - kExpRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float q = 1.3814540087e-3f;
  q = q * r + 8.3687451075e-3f;
  q = q * r + 4.1668390785e-2f;
  q = q * r + 1.6666520399e-1f;
  q = q * r + 4.9999993432e-1f;
  return {(q * (r * r) + r) + 1.0f, __builtin_bit_cast(std::uint32_t, shifted)};
}

// e^x to 2 ulp over all floats: results below the normal range are rounded to subnormals or 0,
// exp(-inf) = 0, exp(large) = inf, NaN stays NaN.
[[gnu::always_inline]] inline float exp_of(float x) {
  x = x < -105.0f ? -105.0f : x;  // false for NaN, which passes through
  x = x > 89.0f ? 89.0f : x;
  const ExpParts parts = split_exp(x);
  // 2^n in two factors, each a normal number. For NaN the integer is arbitrary and harmless.
  const std::int32_t exponent =
      static_cast<std::int32_t>(parts.shifted - __builtin_bit_cast(std::uint32_t, kExpRound));
  const std::int32_t half = exponent >> 1;
  const std::uint32_t low = static_cast<std::uint32_t>(half + 127) << 23;
  const std::uint32_t high = static_cast<std::uint32_t>(exponent - half + 127) << 23;
  return parts.fraction * __builtin_bit_cast(float, low) * __builtin_bit_cast(float, high);
}

// The same for x <= 0 or NaN, in fewer operations, as a softmax needs it: 0 below -87, where e^x is
// less than 1.7e-38. +inf gives NaN; other x > 0 up to 88 are right, above it is arbitrary.
[[gnu::always_inline]] inline float exp_nonpositive(float x) {
  constexpr float kLeast = -87.0f;
  const float clamped = x < kLeast ? kLeast : x;
  const ExpParts parts = split_exp(clamped);
  // Adds n to the exponent's bits: kExpRound's own bits below the tenth are zero.
  const std::uint32_t bits =
      __builtin_bit_cast(std::uint32_t, parts.fraction) + (parts.shifted << 23);
  // The product with 0 is there for NaN, whose bits the addition may have spoiled.
  const float value = clamped * 0.0f + __builtin_bit_cast(float, bits);
  return x < kLeast ? 0.0f : value;
}

// 1 / (1 + e^-x)
[[gnu::always_inline]] inline float sigmoid_of(float x) {
  const float e = exp_nonpositive(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

}  // namespace
}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
