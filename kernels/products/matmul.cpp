#include "kernels/products/matmul.h"

#include <cstring>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/products/matmul_cpu.h"
#include "kernels/products/matmul_cuda.h"
#include "kernels/products/onednn_gemm.h"

namespace chaski {
namespace {

constexpr const char* kOp = "matmul";

std::int64_t rows_of(const Matrix& m, Transpose transpose) {
  return transpose == Transpose::yes ? m.cols : m.rows;
}

std::int64_t cols_of(const Matrix& m, Transpose transpose) {
  return transpose == Transpose::yes ? m.rows : m.cols;
}

GemmOperand operand_of(const Matrix& m, Transpose transpose) {
  return transpose == Transpose::yes ? GemmOperand{m.f32(), 1, m.stride}
                                     : GemmOperand{m.f32(), m.stride, 1};
}

void require_inside(const char* name, const Matrix& m) {
  const bool fits =
      m.rows >= 0 && m.cols >= 0 && m.offset >= 0 && m.stride >= m.cols &&
      (m.rows == 0 || m.offset + (m.rows - 1) * m.stride + m.cols <= m.tensor.num_elements());
  if (!fits)
    throw std::invalid_argument(
        fmt::format("{}: {} is [{}, {}] with stride {} from element {}, outside its tensor {}", kOp,
                    name, m.rows, m.cols, m.stride, m.offset, m.tensor.shape().to_string()));
}

void clear(Device& device, const Matrix& out) {
  CHASKI_CUDA_OP(device, clear(out));
  for (std::int64_t row = 0; row < out.rows; ++row)
    std::memset(out.f32() + row * out.stride, 0,
                static_cast<std::size_t>(out.cols) * sizeof(float));
}

void require_types(const Device& device, const Matrix& a, const Matrix& b, const Matrix& out) {
  const DType type = a.tensor.dtype();
  const bool cuda_bf16 = device.backend() == Backend::cuda && type == DType::bf16;
  if (!cuda_bf16) require_dtype(kOp, "a", a.tensor, DType::f32);
  require_dtype(kOp, "b", b.tensor, type);
  if (!cuda_bf16 || out.tensor.dtype() != DType::bf16) {
    require_dtype(kOp, "out", out.tensor, DType::f32);
  }
}

// Which of the three products of a linear layer has these transposes.
const char* profiled_name(Transpose transpose_a, Transpose transpose_b) {
  if (transpose_a == Transpose::yes) return "gemm_weight_gradient";
  return transpose_b == Transpose::yes ? "gemm_forward" : "gemm_input_gradient";
}

// op(a) of one row as contiguous elements.
const float* single_row(const Matrix& a, Transpose transpose_a, Workspace::Frame& frame) {
  if (transpose_a == Transpose::no || a.stride == 1) return a.f32();
  float* row = frame.f32({a.rows}).f32();
  for (std::int64_t i = 0; i < a.rows; ++i) row[i] = a.f32()[i * a.stride];
  return row;
}

void multiply_row(Device& device, const Matrix& a, Transpose transpose_a, const Matrix& b,
                  Transpose transpose_b, const Matrix& out, bool accumulate) {
  Workspace::Frame frame(device);
  const float* x = single_row(a, transpose_a, frame);
  const std::int64_t k = rows_of(b, transpose_b);
  const int threads = threads_for(device, out.cols * k);
  const GemvKernels& cpu = CHASKI_CPU_KERNELS(gemv_kernels);
  (transpose_b == Transpose::yes ? cpu.rows : cpu.columns)(x, b.f32(), b.stride, out.f32(),
                                                           out.cols, k, accumulate, threads);
}

// Whether that takes less time than oneDNN's product: on Zen 4, with a matrix that is in no cache,
// 0.5 to 0.7 of it for 2 rows, 0.5 to 0.8 for 8, 0.65 to 0.8 for 16.
bool is_of_few_rows(std::int64_t m, Transpose transpose_a, Transpose transpose_b) {
  constexpr std::int64_t kFewRows = 16;
  return m <= kFewRows && transpose_a == Transpose::no && transpose_b == Transpose::yes;
}

// What a product takes of the workspace, as charged.
std::int64_t workspace_bytes(Device& device, const Matrix& a, Transpose transpose_a,
                             const Matrix& b, Transpose transpose_b, const Matrix& out,
                             bool accumulate) {
  if (device.backend() == Backend::cuda) return charged_bytes(cuda::kGemmWorkspaceBytes);
  if (out.rows == 1) {
    const bool copied = transpose_a == Transpose::yes && a.stride != 1;
    return copied ? charged_bytes(a.rows * size_of(DType::f32)) : 0;
  }
  if (is_of_few_rows(out.rows, transpose_a, transpose_b)) return 0;
  return onednn_gemm_workspace_bytes(device, out.rows, out.cols, cols_of(a, transpose_a),
                                     operand_of(a, transpose_a), operand_of(b, transpose_b),
                                     operand_of(out, Transpose::no), accumulate);
}

double bytes_of(const Matrix& m) {
  return static_cast<double>(m.rows * m.cols * size_of(m.tensor.dtype()));
}

void multiply_few_rows(Device& device, const Matrix& a, const Matrix& b, const Matrix& out,
                       bool accumulate) {
  FewRowsProblem problem{};
  problem.x = a.f32();
  problem.x_stride = a.stride;
  problem.w = b.f32();
  problem.w_stride = b.stride;
  problem.y = out.f32();
  problem.y_stride = out.stride;
  problem.m = a.rows;
  problem.n = b.rows;
  problem.k = a.cols;
  problem.accumulate = accumulate;
  problem.threads = threads_for(device, problem.n * problem.k);
  CHASKI_CPU_KERNELS(gemv_kernels).few_rows(problem);
}

}  // namespace

Matrix::Matrix(const Tensor& tensor)
    : tensor(tensor),
      offset(0),
      rows(tensor.shape().num_rows()),
      cols(tensor.shape().back()),
      stride(cols) {}

Matrix Matrix::columns(std::int64_t begin, std::int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > cols)
    throw std::invalid_argument(
        fmt::format("columns {} to {} of a matrix of {} columns", begin, begin + count, cols));
  Matrix block = *this;
  block.offset += begin;
  block.cols = count;
  return block;
}

void matmul(const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b,
            const Matrix& out, Accumulate accumulate) {
  Device& device = device_of(kOp, out.tensor);
  device_of(kOp, a.tensor);
  device_of(kOp, b.tensor);
  require_types(device, a, b, out);
  require_inside("a", a);
  require_inside("b", b);
  require_inside("out", out);
  const std::int64_t m = rows_of(a, transpose_a);
  const std::int64_t k = cols_of(a, transpose_a);
  const std::int64_t n = cols_of(b, transpose_b);
  if (rows_of(b, transpose_b) != k || out.rows != m || out.cols != n)
    throw std::invalid_argument(fmt::format("{}: [{}, {}] x [{}, {}] does not give [{}, {}]", kOp,
                                            m, k, rows_of(b, transpose_b), n, out.rows, out.cols));
  const ProfileScope scope(profiled_name(transpose_a, transpose_b), m, n, k);
  const bool add = accumulate == Accumulate::yes;
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (!add && !device.is_counting()) clear(device, out);
    return;
  }
  if (device.is_counting()) {
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n * k);
    const double bytes = bytes_of(a) + bytes_of(b) + (add ? 2.0 : 1.0) * bytes_of(out);
    return count_op(device, {profiled_name(transpose_a, transpose_b), {m, n, k}, 1, flops, bytes},
                    workspace_bytes(device, a, transpose_a, b, transpose_b, out, add));
  }
  CHASKI_CUDA_OP(device, gemm(device, a, transpose_a, b, transpose_b, out, accumulate));
  if (m == 1) {
    multiply_row(device, a, transpose_a, b, transpose_b, out, add);
  } else if (is_of_few_rows(m, transpose_a, transpose_b)) {
    multiply_few_rows(device, a, b, out, add);
  } else {
    onednn_gemm(device, m, n, k, operand_of(a, transpose_a), operand_of(b, transpose_b),
                operand_of(out, Transpose::no), add);
  }
}

void linear_forward(const Matrix& x, const Matrix& weight, const Matrix& y) {
  matmul(x, Transpose::no, weight, Transpose::yes, y);
}

void linear_backward_input(const Matrix& dy, const Matrix& weight, const Matrix& dx,
                           Accumulate accumulate) {
  matmul(dy, Transpose::no, weight, Transpose::no, dx, accumulate);
}

void linear_backward_weight(const Matrix& dy, const Matrix& x, const Matrix& dweight) {
  matmul(dy, Transpose::yes, x, Transpose::no, dweight, Accumulate::yes);
}

const char* gemm_library(Backend backend) {
#ifdef CHASKI_CUDA
  if (backend == Backend::cuda) return cuda::gemm_library_name();
#endif
  static_cast<void>(backend);
  return onednn_name();
}

}  // namespace chaski
