#pragma once

// Arithmetic, conversions, loads and stores, atomics (part of device.h). The fast forms are
// computed as exactly as the host's libm does.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace chaski::cuda_model {

/// Message with kernel, block and thread on stderr, then abort().
[[noreturn]] void fail_in_kernel(const char* what);
/// Nanoseconds of a steady clock.
long long clock_ticks();

template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

template <typename T>
concept AtomicNumber = std::is_arithmetic_v<T> &&(sizeof(T) == 4 || sizeof(T) == 8);
template <typename T>
concept AtomicInteger = std::is_integral_v<T> &&(sizeof(T) == 4 || sizeof(T) == 8);

/// Replaces *address by change(old); the old value. Whole, as fibers are not interrupted.
template <typename T, typename Change>
T exchange(T* address, Change change) {
  const T old = *address;
  *address = change(old);
  return old;
}

/// Integers of C++ may not overflow, those of the device wrap around.
template <typename T>
T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

}  // namespace chaski::cuda_model

// libm declares these names for itself, without defining them.
#define __expf(x) ::expf(x)
#define __exp10f(x) ::exp10f(x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __log10f(x) ::log10f(x)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __tanf(x) ::tanf(x)
#define __tanhf(x) ::tanhf(x)
#define __powf(x, y) ::powf(x, y)
#define __sincosf(x, sine, cosine) ::sincosf(x, sine, cosine)

#define __builtin_assume(condition) \
  ((condition) ? void()             \
               : ::chaski::cuda_model::fail_in_kernel("what was assumed is false: " #condition))
#define __trap() ::chaski::cuda_model::fail_in_kernel("__trap() was reached")

inline float rsqrtf(float x) {
  return 1.0F / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return 1.0F / sqrtf(x);
}
inline float __frcp_rn(float x) {
  return 1.0F / x;
}
inline float __fsqrt_rn(float x) {
  return sqrtf(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float fdividef(float x, float y) {
  return x / y;
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fsub_rn(float x, float y) {
  return x - y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return fmaf(x, y, z);
}
inline float __saturatef(float x) {
  return x > 0.0F ? (x < 1.0F ? x : 1.0F) : 0.0F;
}
inline double __dadd_rn(double x, double y) {
  return x + y;
}
inline double __dmul_rn(double x, double y) {
  return x * y;
}
inline float sinpif(float x) {
  return static_cast<float>(sin(M_PI * static_cast<double>(x)));
}
inline float cospif(float x) {
  return static_cast<float>(cos(M_PI * static_cast<double>(x)));
}

inline int min(int a, int b) {
  return a < b ? a : b;
}
inline unsigned min(unsigned a, unsigned b) {
  return a < b ? a : b;
}
inline unsigned min(int a, unsigned b) {
  return min(static_cast<unsigned>(a), b);
}
inline unsigned min(unsigned a, int b) {
  return min(a, static_cast<unsigned>(b));
}
inline long min(long a, long b) {
  return a < b ? a : b;
}
inline unsigned long min(unsigned long a, unsigned long b) {
  return a < b ? a : b;
}
inline long long min(long long a, long long b) {
  return a < b ? a : b;
}
inline unsigned long long min(unsigned long long a, unsigned long long b) {
  return a < b ? a : b;
}
inline float min(float a, float b) {
  return fminf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline unsigned max(unsigned a, unsigned b) {
  return a > b ? a : b;
}
inline unsigned max(int a, unsigned b) {
  return max(static_cast<unsigned>(a), b);
}
inline unsigned max(unsigned a, int b) {
  return max(a, static_cast<unsigned>(b));
}
inline long max(long a, long b) {
  return a > b ? a : b;
}
inline unsigned long max(unsigned long a, unsigned long b) {
  return a > b ? a : b;
}
inline long long max(long long a, long long b) {
  return a > b ? a : b;
}
inline unsigned long long max(unsigned long long a, unsigned long long b) {
  return a > b ? a : b;
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}

inline unsigned __float_as_uint(float x) {
  return chaski::cuda_model::bits_as<unsigned>(x);
}
inline int __float_as_int(float x) {
  return chaski::cuda_model::bits_as<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return chaski::cuda_model::bits_as<float>(x);
}
inline float __int_as_float(int x) {
  return chaski::cuda_model::bits_as<float>(x);
}
inline long long __double_as_longlong(double x) {
  return chaski::cuda_model::bits_as<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return chaski::cuda_model::bits_as<double>(x);
}
inline int __float2int_rn(float x) {
  return static_cast<int>(rintf(x));
}
inline int __float2int_rz(float x) {
  return static_cast<int>(x);
}
inline int __float2int_rd(float x) {
  return static_cast<int>(floorf(x));
}
inline int __float2int_ru(float x) {
  return static_cast<int>(ceilf(x));
}
inline unsigned __float2uint_rn(float x) {
  return static_cast<unsigned>(rintf(x));
}
inline unsigned __float2uint_rz(float x) {
  return static_cast<unsigned>(x);
}
inline float __int2float_rn(int x) {
  return static_cast<float>(x);
}
inline float __uint2float_rn(unsigned x) {
  return static_cast<float>(x);
}
inline float __ll2float_rn(long long x) {
  return static_cast<float>(x);
}
inline float __ull2float_rn(unsigned long long x) {
  return static_cast<float>(x);
}
inline float __double2float_rn(double x) {
  return static_cast<float>(x);
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1U) << (31 - bit);
  return reversed;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(x) * y >> 32);
}
inline int __mulhi(int x, int y) {
  return static_cast<int>(static_cast<std::int64_t>(x) * y >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(x) * y >> 64);
}
inline int __mul24(int x, int y) {
  const auto low = [](int value) { return static_cast<std::int64_t>(value << 8 >> 8); };
  return static_cast<int>(low(x) * low(y));
}
inline unsigned __umul24(unsigned x, unsigned y) {
  return (x & 0xffffffU) * (y & 0xffffffU);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned chosen = selector >> (4 * i) & 7U;
    result |= static_cast<unsigned>(bytes >> (8 * chosen) & 0xffU) << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) << (shift & 31U) >>
                               32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31U));
}

#define CHASKI_CUDA_MODEL_LOAD(name) \
  template <typename T>              \
  T name(const T* address) {         \
    return *address;                 \
  }
CHASKI_CUDA_MODEL_LOAD(__ldg)
CHASKI_CUDA_MODEL_LOAD(__ldcg)
CHASKI_CUDA_MODEL_LOAD(__ldca)
CHASKI_CUDA_MODEL_LOAD(__ldcs)
CHASKI_CUDA_MODEL_LOAD(__ldlu)
CHASKI_CUDA_MODEL_LOAD(__ldcv)
#undef CHASKI_CUDA_MODEL_LOAD
#define CHASKI_CUDA_MODEL_STORE(name)                           \
  template <typename T>                                         \
  void name(T* address, const std::type_identity_t<T>& value) { \
    *address = value;                                           \
  }
CHASKI_CUDA_MODEL_STORE(__stwb)
CHASKI_CUDA_MODEL_STORE(__stcg)
CHASKI_CUDA_MODEL_STORE(__stcs)
CHASKI_CUDA_MODEL_STORE(__stwt)
#undef CHASKI_CUDA_MODEL_STORE

template <typename T>
requires chaski::cuda_model::AtomicNumber<T> || std::is_class_v<T> T
atomicAdd(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address, [value](T old) {
    if constexpr (std::is_class_v<T>) {
      return old + value;
    } else {
      return chaski::cuda_model::wrapping_add(old, value);
    }
  });
}
template <chaski::cuda_model::AtomicInteger T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address, [value](T old) {
    return static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) -
                          static_cast<std::make_unsigned_t<T>>(value));
  });
}
template <chaski::cuda_model::AtomicInteger T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address,
                                      [value](T old) { return value < old ? value : old; });
}
template <chaski::cuda_model::AtomicInteger T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address,
                                      [value](T old) { return value > old ? value : old; });
}
template <chaski::cuda_model::AtomicInteger T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address, [value](T old) { return old & value; });
}
template <chaski::cuda_model::AtomicInteger T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address, [value](T old) { return old | value; });
}
template <chaski::cuda_model::AtomicInteger T>
T atomicXor(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address, [value](T old) { return old ^ value; });
}
template <chaski::cuda_model::AtomicNumber T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(address, [value](T) { return value; });
}
template <typename T>
requires chaski::cuda_model::AtomicInteger<T> || std::is_same_v<T, unsigned short> T
atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return chaski::cuda_model::exchange(
      address, [compare, value](T old) { return old == compare ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return chaski::cuda_model::exchange(
      address, [limit](unsigned old) { return old >= limit ? 0U : old + 1U; });
}
inline unsigned atomicDec(unsigned* address, unsigned limit) {
  return chaski::cuda_model::exchange(
      address, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1U; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
inline long long clock64() {
  return chaski::cuda_model::clock_ticks();
}
