#pragma once

#include <cstdint>

#include "kernels/device/tensor.h"

namespace chaski::cuda {

void fill(const Tensor& out, float value);
void copy(const Tensor& from, const Tensor& to);
void copy_from_host(const void* from, const Tensor& to);
void copy_to_host(const Tensor& from, void* to);
void add(const Tensor& a, const Tensor& b, const Tensor& out);
void scale(const Tensor& x, float factor);
// From f32 to bf16 or the reverse.
void cast(const Tensor& from, const Tensor& to);
double sum_of_squares(const Tensor& x);
double sum(const Tensor& x);
std::int64_t count_nonfinite(const Tensor& x);
void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream);

// Elements whose sum is taken first: fixed, so that the result does not depend on the GPU.
inline constexpr std::int64_t kSumBlock = 16384;
inline std::int64_t num_partial_sums(std::int64_t count) {
  return (count + kSumBlock - 1) / kSumBlock;
}

}  // namespace chaski::cuda
