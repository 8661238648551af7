#include "kernels/elementwise/elementwise_cpu.h"
#include "kernels/elementwise/philox.h"

// Only operations that IEEE 754 rounds correctly, in an order of their own: every processor makes
// the same bits, so that replicas on different ones begin with the same weights. (The C library's
// functions differ with the processor.) This file is compiled without contraction to FMA.

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

constexpr double kLn2 = 0.693147180559945309417;
constexpr double kPi = 3.14159265358979323846;

// By Horner's rule, the highest power's coefficient first.
template <int kCount>
[[gnu::always_inline]] inline double polynomial(const double (&coefficients)[kCount], double s) {
  double sum = coefficients[0];
#pragma GCC unroll 16
  for (int i = 1; i < kCount; ++i) sum = sum * s + coefficients[i];
  return sum;
}

// word + 1/2 exactly, by way of the signed conversion that every instruction set has.
[[gnu::always_inline]] inline double middle_of(std::uint32_t word) {
  return static_cast<double>(static_cast<std::int32_t>(word ^ 0x80000000u)) + 2147483648.5;
}

// ln((word + 1/2) / 2^32): with x = m · 2^e, m in [√½, √2), and f = (m - 1) / (m + 1) it is
// (e - 32) ln 2 + 2 (f + f³/3 + f⁵/5 + …); f² < 0.0295, what is left out is below 1e-18.
[[gnu::always_inline]] inline double log_of_uniform(std::uint32_t word) {
  constexpr std::uint64_t kSqrtHalf = 0x3fe6a09e667f3bcdu;
  constexpr std::uint64_t kOne = std::uint64_t{1} << 52;  // of the exponent
  constexpr std::uint64_t kTwo52 = 0x4330000000000000u;   // the double 2^52
  const auto bits = __builtin_bit_cast(std::uint64_t, middle_of(word));
  const std::uint64_t next_exponent = (bits - kSqrtHalf + kOne) >> 52;  // e + 1, not negative
  const double m = __builtin_bit_cast(double, bits - (next_exponent << 52) + kOne);
  const double e = __builtin_bit_cast(double, next_exponent | kTwo52) - 4503599627370497.0;
  const double f = (m - 1.0) / (m + 1.0);
  const double s = f * f;
  const double sum = polynomial({1.0 / 21.0, 1.0 / 19.0, 1.0 / 17.0, 1.0 / 15.0, 1.0 / 13.0,
                                 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0},
                                s);
  return (e - 32.0) * kLn2 + (2.0 * f + (2.0 * f) * (s * sum));
}

struct Direction {
  double cosine;
  double sine;
};

// Of the angle 2π · word / 2^32: the Taylor series within an eighth of a turn around the nearest
// quarter, whose number says which is which and their signs. What is left out is below 1e-18.
[[gnu::always_inline]] inline Direction direction_of(std::uint32_t word) {
  const std::uint32_t quarter = (word + (1u << 29)) >> 30;
  const auto rest = static_cast<std::int32_t>(word - (quarter << 30));
  const double angle = static_cast<double>(rest) * (kPi / 2147483648.0);
  const double s = angle * angle;
  // From 17! and 18! down.
  const double cubic =
      polynomial({1.0 / 355687428096000.0, -1.0 / 1307674368000.0, 1.0 / 6227020800.0,
                  -1.0 / 39916800.0, 1.0 / 362880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0},
                 s);
  const double quartic =
      polynomial({-1.0 / 6402373705728000.0, 1.0 / 20922789888000.0, -1.0 / 87178291200.0,
                  1.0 / 479001600.0, -1.0 / 3628800.0, 1.0 / 40320.0, -1.0 / 720.0, 1.0 / 24.0},
                 s);
  const double sine = angle + angle * (s * cubic);
  const double cosine = 1.0 - (0.5 * s - s * s * quartic);
  const bool odd = (quarter & 1u) != 0;
  const double x = odd ? sine : cosine;
  const double y = odd ? cosine : sine;
  return {((quarter + 1) & 2u) != 0 ? -x : x, (quarter & 2u) != 0 ? -y : y};
}

constexpr std::int64_t kWords = 4;  // of one counter
constexpr std::int64_t kGroups =
    64;  // counters at a time: what lies between the loops fits the first-level cache

// Box-Muller: the numbers of the counters `first`, first + 1, …, in their order.
void fill_groups(std::uint64_t first, std::uint64_t seed, std::uint64_t stream, double mean,
                 double standard_deviation, float* out) {
  std::uint32_t words[kWords][kGroups];
#pragma omp simd
  for (std::int64_t i = 0; i < kGroups; ++i) {
    const PhiloxWords made =
        philox4x32(philox_counter(first + static_cast<std::uint64_t>(i), stream), seed);
    words[0][i] = made.at[0];
    words[1][i] = made.at[1];
    words[2][i] = made.at[2];
    words[3][i] = made.at[3];
  }
  float numbers[kWords][kGroups];
  for (std::int64_t pair = 0; pair < kWords; pair += 2) {
#pragma omp simd
    for (std::int64_t i = 0; i < kGroups; ++i) {
      const double radius =
          standard_deviation * __builtin_sqrt(-2.0 * log_of_uniform(words[pair][i]));
      const Direction direction = direction_of(words[pair + 1][i]);
      numbers[pair][i] = static_cast<float>(mean + radius * direction.cosine);
      numbers[pair + 1][i] = static_cast<float>(mean + radius * direction.sine);
    }
  }
  for (std::int64_t i = 0; i < kGroups; ++i) {
    for (std::int64_t word = 0; word < kWords; ++word) out[i * kWords + word] = numbers[word][i];
  }
}

void fill(float* out, std::int64_t count, float mean, float standard_deviation, std::uint64_t seed,
          std::uint64_t stream, int threads) {
  constexpr std::int64_t kBlock = kGroups * kWords;
  const std::int64_t num_blocks = (count + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    const auto first = static_cast<std::uint64_t>(block * kGroups);
    float* const to = out + block * kBlock;
    const std::int64_t left = count - block * kBlock;
    if (left >= kBlock) {
      fill_groups(first, seed, stream, mean, standard_deviation, to);
      continue;
    }
    float whole[kBlock];
    fill_groups(first, seed, stream, mean, standard_deviation, whole);
    for (std::int64_t i = 0; i < left; ++i) to[i] = whole[i];
  }
}

}  // namespace

const NormalKernels normal_kernels = {fill};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
