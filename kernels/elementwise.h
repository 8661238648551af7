#pragma once

#include "kernels/tensor.h"

namespace chaski {

void fill(const Tensor& out, float value);
void copy(const Tensor& from, const Tensor& to);  // same dtype and number of elements
// Between host memory and a tensor: tensor.num_bytes() bytes, complete on return.
void copy_from_host(const void* from, const Tensor& to);
void copy_to_host(const Tensor& from, void* to);
void add(const Tensor& a, const Tensor& b, const Tensor& out);  // out may be a or b
void scale(const Tensor& x, float factor);                      // in place

// Σ x² in double over fixed blocks, so that it does not depend on the number of threads.
double sum_of_squares(const Tensor& x);
double sum(const Tensor& x);
// Number of elements that are NaN or infinite.
std::int64_t count_nonfinite(const Tensor& x);

// Independent normal numbers from a counter-based generator (Philox4x32-10, Salmon et al., SC 2011;
// Box-Muller): element i is a pure function of (seed, stream, i).
void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream);

}  // namespace chaski
