#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/device/tensor.h"

namespace chaski::cuda {

// delta may be empty: then residual_out is not written.
void rmsnorm_forward(const char* op, const Tensor& residual, const Tensor& delta,
                     const Tensor& weight, float epsilon, const Tensor& residual_out,
                     const Tensor& y, const Tensor& inverse_rms);
void rmsnorm_recompute(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& y);
// partial_sums [rmsnorm_partial_sums, hidden] f32, where dweight is not empty, to work in.
void rmsnorm_backward(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                      const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                      const Tensor& partial_sums);

// Each partial sum of dweight is over so many rows.
inline std::int64_t rmsnorm_rows_of_sum(std::int64_t rows) {
  constexpr std::int64_t kLeastRows = 16;
  constexpr std::int64_t kMostSums = 1024;
  return std::max(kLeastRows, (rows + kMostSums - 1) / kMostSums);
}
inline std::int64_t rmsnorm_partial_sums(std::int64_t rows) {
  return (rows + rmsnorm_rows_of_sum(rows) - 1) / rmsnorm_rows_of_sum(rows);
}

}  // namespace chaski::cuda
