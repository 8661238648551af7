// In place of kernels/products/cublaslt_gemm.cpp where the execution model runs: the same products
// by the CPU's library, queued on the stream as cuBLASLt's are.

#include <algorithm>
#include <cuda_runtime_api.h>
#include <dnnl.h>
#include <memory>
#include <vector>

#include "kernels/device/bf16.h"
#include "kernels/device/cuda_context.h"
#include "kernels/products/matmul_cuda.h"
#include "tests/cuda_model/grid.h"

namespace chaski::cuda {
namespace {

// Row-major elements of f32 or bf16.
struct Elements {
  void* data;
  std::int64_t rows, cols, stride;
  bool bf16;

  explicit Elements(const Matrix& matrix)
      : data(matrix.raw()),
        rows(matrix.rows),
        cols(matrix.cols),
        stride(matrix.stride),
        bf16(matrix.tensor.dtype() == DType::bf16) {}

  // Copies, rows close together: here, not in the library, AddressSanitizer sees each access.
  std::vector<float> widened() const {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (std::int64_t row = 0; row < rows; ++row) {
      float* const to = values.data() + row * cols;
      if (bf16) {
        const auto* const from = static_cast<const std::uint16_t*>(data) + row * stride;
        for (std::int64_t col = 0; col < cols; ++col) to[col] = float_from_bf16(from[col]);
      } else {
        std::copy_n(static_cast<const float*>(data) + row * stride, cols, to);
      }
    }
    return values;
  }
  void store(const std::vector<float>& values) const {
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* const from = values.data() + row * cols;
      if (bf16) {
        auto* const to = static_cast<std::uint16_t*>(data) + row * stride;
        for (std::int64_t col = 0; col < cols; ++col) to[col] = bf16_from_float(from[col]);
      } else {
        std::copy_n(from, cols, static_cast<float*>(data) + row * stride);
      }
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

  void run() const {
    const std::vector<float> left = a.widened();
    const std::vector<float> right = b.widened();
    std::vector<float> sums =
        accumulate ? out.widened()
                   : std::vector<float>(static_cast<std::size_t>(out.rows * out.cols));
    const dnnl_status_t status =
        dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', out.rows, out.cols,
                   transpose_a ? a.rows : a.cols, 1.0F, left.data(), a.cols, right.data(), b.cols,
                   accumulate ? 1.0F : 0.0F, sums.data(), out.cols);
    if (status != dnnl_success) cuda_model::fail("oneDNN's sgemm failed");
    out.store(sums);
  }
};

void run_queued(void* product) {
  static_cast<Product*>(product)->run();
}

}  // namespace

void gemm(Device& device, const Matrix& a, Transpose transpose_a, const Matrix& b,
          Transpose transpose_b, const Matrix& out, Accumulate accumulate) {
  // As much as the library would, though oneDNN's sgemm needs none of it.
  Workspace::Frame frame(device);
  frame.tensor(DType::u8, {kGemmWorkspaceBytes});
  const bool ta = transpose_a == Transpose::yes;
  // Kept for ever: a captured graph may run it again.
  static std::vector<std::unique_ptr<Product>> products;
  products.push_back(
      std::make_unique<Product>(Product{Elements(a), ta, Elements(b), transpose_b == Transpose::yes,
                                        Elements(out), accumulate == Accumulate::yes}));
  check(cudaLaunchHostFunc(stream_of(device), run_queued, products.back().get()), "a product");
}

const char* gemm_library_name() {
  return "oneDNN";
}

}  // namespace chaski::cuda
