#pragma once

#include <cstdint>

namespace chaski {

class Device;

// One operand of a product: element (row, col) at data[row · row_stride + col · col_stride], one of
// the strides being 1.
struct GemmOperand {
  float* data;
  std::int64_t row_stride;
  std::int64_t col_stride;
};

// out [M, N] = a [M, K] · b [K, N], or += with accumulate, on the device's threads. Dimensions are
// at least 1. The oneDNN primitive and its argument objects are created at a shape's first call and
// kept (per calling thread); scratch memory comes from the device's workspace, or, for the products
// that oneDNN's sgemm does (b row-major), is oneDNN's own.
void onednn_gemm(Device& device, std::int64_t m, std::int64_t n, std::int64_t k,
                 const GemmOperand& a, const GemmOperand& b, const GemmOperand& out,
                 bool accumulate);

// Bytes of workspace that such a product takes, as charged. Reads no element.
std::int64_t onednn_gemm_workspace_bytes(Device& device, std::int64_t m, std::int64_t n,
                                         std::int64_t k, const GemmOperand& a, const GemmOperand& b,
                                         const GemmOperand& out, bool accumulate);

// "oneDNN 2.6.3": the library that runs, not the one that was compiled against.
const char* onednn_name();

}  // namespace chaski
