#pragma once

#include <cstdint>

#include "kernels/tensor.h"

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
void sum_to(const Tensor& x, const Tensor& total);
std::int64_t count_nonfinite(const Tensor& x);
void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream);

}  // namespace chaski::cuda
