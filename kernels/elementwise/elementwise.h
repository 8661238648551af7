#pragma once

#include "kernels/device/tensor.h"

namespace chaski {

// f32 everywhere, on GPUs f32 or bf16; the operands of one op have the same type.

void fill(const Tensor& out, float value);
void copy(const Tensor& from, const Tensor& to);  // same dtype and number of elements
// Between host memory and a tensor: tensor.num_bytes() bytes, complete on return.
void copy_from_host(const void* from, const Tensor& to);
void copy_to_host(const Tensor& from, void* to);
void add(const Tensor& a, const Tensor& b, const Tensor& out);  // out may be a or b
void scale(const Tensor& x, float factor);                      // in place
// Between f32 and bf16, to nearest with ties to even; or a copy.
void cast(const Tensor& from, const Tensor& to);

// Σ x² in double over fixed blocks, so that it does not depend on the number of threads.
double sum_of_squares(const Tensor& x);
double sum(const Tensor& x);
// Number of elements that are NaN or infinite.
std::int64_t count_nonfinite(const Tensor& x);

// Independent normal numbers from a counter-based generator (Philox4x32-10, Salmon et al., SC 2011;
// Box-Muller in double): element i is a pure function of (seed, stream, i), the same on every CPU.
// A GPU's may differ by a few units in the last place.
void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream);

}  // namespace chaski
