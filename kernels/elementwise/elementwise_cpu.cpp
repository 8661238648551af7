#include "kernels/elementwise/elementwise_cpu.h"

#include <omp.h>

#include "kernels/device/bf16.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// The C library's memset writes past the caches where that is faster: zeroing all gradients is 3 to
// 5 times as fast as with plain stores, which read each line first.
void clear(float* out, std::int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const std::int64_t each = (count + omp_get_num_threads() - 1) / omp_get_num_threads();
    const std::int64_t begin = each * omp_get_thread_num();
    const std::int64_t end = begin + each < count ? begin + each : count;
    if (begin < end)
      __builtin_memset(out + begin, 0, static_cast<std::size_t>(end - begin) * sizeof(float));
  }
}

void fill(float* out, float value, std::int64_t count, int threads) {
  if (__builtin_bit_cast(std::uint32_t, value) == 0) return clear(out, count, threads);
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) out[i] = value;
}

void copy(const char* from, char* to, std::int64_t bytes, int threads) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 18;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t begin = 0; begin < bytes; begin += kPiece) {
    const std::int64_t size = begin + kPiece < bytes ? kPiece : bytes - begin;
    __builtin_memcpy(to + begin, from + begin, static_cast<std::size_t>(size));
  }
}

void add(const float* a, const float* b, float* out, std::int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

void scale(float* x, float factor, std::int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) x[i] *= factor;
}

void to_bf16(const float* from, std::uint16_t* to, std::int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) to[i] = bf16_from_float(from[i]);
}

void from_bf16(const std::uint16_t* from, float* to, std::int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) to[i] = float_from_bf16(from[i]);
}

template <bool kSquared>
void block_sums(const float* x, double* partial_sums, std::int64_t count, int threads) {
  const std::int64_t num_blocks = (count + kReductionBlock - 1) / kReductionBlock;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    const std::int64_t begin = block * kReductionBlock;
    const std::int64_t end = begin + kReductionBlock < count ? begin + kReductionBlock : count;
    double total = 0.0;
#pragma omp simd reduction(+ : total)
    for (std::int64_t i = begin; i < end; ++i) {
      const double value = x[i];
      total += kSquared ? value * value : value;
    }
    partial_sums[block] = total;
  }
}

std::int64_t count_nonfinite(const float* x, std::int64_t count, int threads) {
  std::int64_t total = 0;
#pragma omp parallel for simd num_threads(threads) schedule(static) reduction(+ : total)
  for (std::int64_t i = 0; i < count; ++i) {
    constexpr std::uint32_t kExponent = 0x7f800000u;
    total += (__builtin_bit_cast(std::uint32_t, x[i]) & kExponent) == kExponent ? 1 : 0;
  }
  return total;
}

}  // namespace

const ElementwiseKernels elementwise_kernels = {
    fill,           copy, add, scale, to_bf16, from_bf16, block_sums<true>, block_sums<false>,
    count_nonfinite};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
