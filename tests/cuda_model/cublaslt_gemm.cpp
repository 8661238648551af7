// In place of kernels/cublaslt_gemm.cpp where the execution model runs: the same products by plain
// loops, queued on the stream as the library's are.

#include <cuda_runtime_api.h>
#include <memory>

#include "kernels/bf16.h"
#include "kernels/cuda_context.h"
#include "kernels/matmul_cuda.h"

namespace chaski::cuda {
namespace {

// Row-major elements of f32 or bf16.
struct Elements {
  void* data;
  std::int64_t stride;
  bool bf16;

  explicit Elements(const Matrix& matrix)
      : data(matrix.raw()), stride(matrix.stride), bf16(matrix.tensor.dtype() == DType::bf16) {}

  float get(std::int64_t row, std::int64_t col) const {
    const std::int64_t i = row * stride + col;
    return bf16 ? float_from_bf16(static_cast<std::uint16_t*>(data)[i])
                : static_cast<float*>(data)[i];
  }
  void set(std::int64_t row, std::int64_t col, float value) const {
    const std::int64_t i = row * stride + col;
    if (bf16) {
      static_cast<std::uint16_t*>(data)[i] = bf16_from_float(value);
    } else {
      static_cast<float*>(data)[i] = value;
    }
  }
};

struct Product {
  Elements a;
  bool transpose_a;
  Elements b;
  bool transpose_b;
  Elements out;
  bool accumulate;
  std::int64_t m, n, k;

  void run() const {
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t col = 0; col < n; ++col) {
        double sum = accumulate ? out.get(row, col) : 0.0;
        for (std::int64_t i = 0; i < k; ++i) {
          sum += static_cast<double>(transpose_a ? a.get(i, row) : a.get(row, i)) *
                 (transpose_b ? b.get(col, i) : b.get(i, col));
        }
        out.set(row, col, static_cast<float>(sum));
      }
    }
  }
};

void run_queued(void* product) {
  static_cast<Product*>(product)->run();
}

}  // namespace

void gemm(Device& device, const Matrix& a, Transpose transpose_a, const Matrix& b,
          Transpose transpose_b, const Matrix& out, Accumulate accumulate) {
  // As the library's, though loops need none.
  Workspace::Frame frame(device);
  frame.tensor(DType::u8, {kGemmWorkspaceBytes});
  const bool ta = transpose_a == Transpose::yes;
  // Kept for ever: a captured graph may run it again.
  static std::vector<std::unique_ptr<Product>> products;
  products.push_back(std::make_unique<Product>(
      Product{Elements(a), ta, Elements(b), transpose_b == Transpose::yes, Elements(out),
              accumulate == Accumulate::yes, out.rows, out.cols, ta ? a.rows : a.cols}));
  check(cudaLaunchHostFunc(stream_of(device), run_queued, products.back().get()), "a product");
}

const char* gemm_library_name() {
  return "loops";
}

}  // namespace chaski::cuda
