#pragma once

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// A row-major matrix whose rows may lie apart: a Tensor seen as [rows, cols], or a block of its
// columns (e.g. the query part of a fused query-key-value product).
struct Matrix {
  Tensor tensor;        // element (0, 0) is at tensor data + offset
  std::int64_t offset;  // elements
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t stride;  // elements between rows, >= cols

  // All of `tensor`: the last dimension gives the columns, the others the rows.
  Matrix(const Tensor& tensor);  // NOLINT: implicit on purpose
  // Columns [begin, begin + count) of this matrix.
  Matrix columns(std::int64_t begin, std::int64_t count) const;
  float* f32() const { return tensor.f32() + offset; }
  void* raw() const { return static_cast<char*>(tensor.raw()) + offset * size_of(tensor.dtype()); }
};

enum class Transpose { no, yes };
enum class Accumulate { no, yes };

// out = op(a) · op(b), or out += op(a) · op(b) with Accumulate::yes. op(a) is [M, K], op(b) is
// [K, N], out is [M, N] and shares no element with a or b.
// On the CPU: fp32, through oneDNN with one primitive per shape and thread count, created at its
// first call and kept by the calling thread; after that no device memory is allocated (oneDNN
// itself takes some 300 bytes of heap a call). Products of one row (a decoding step), and with a
// transposed b of up to 16 (several sequences), take a path bound by reading b once; of those of 2
// to 16 rows a row's result does not depend on the others. The same operands give the same bits on
// the same number of threads.
// On a GPU: a and b both f32 or both bf16, out f32, or bf16 with bf16 operands; sums in fp32.
// Throws std::invalid_argument when the shapes do not fit or a matrix exceeds its tensor.
void matmul(const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b,
            const Matrix& out, Accumulate accumulate = Accumulate::no);

// y = x · Wᵀ: x [T, in], weight [out, in], y [T, out].
void linear_forward(const Matrix& x, const Matrix& weight, const Matrix& y);
// dx = dy · W  (or += with accumulate).
void linear_backward_input(const Matrix& dy, const Matrix& weight, const Matrix& dx,
                           Accumulate accumulate = Accumulate::no);
// dW += dyᵀ · x.
void linear_backward_weight(const Matrix& dy, const Matrix& x, const Matrix& dweight);

// Name and version of the GEMM library of a backend, e.g. "oneDNN 2.6.3".
const char* gemm_library(Backend backend = Backend::cpu);

}  // namespace chaski
