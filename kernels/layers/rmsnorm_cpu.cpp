#include "kernels/layers/rmsnorm_cpu.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

void normalize(const float* x, const float* weight, float inverse_rms, float* y,
               std::int64_t hidden) {
#pragma omp simd
  for (std::int64_t i = 0; i < hidden; ++i) y[i] = x[i] * inverse_rms * weight[i];
}

float sum_of_squares(const float* x, std::int64_t hidden) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < hidden; ++i) sum += x[i] * x[i];
  return sum;
}

float add_with_sum_of_squares(const float* residual, const float* delta, float* residual_out,
                              std::int64_t hidden) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < hidden; ++i) {
    const float value = residual[i] + delta[i];
    residual_out[i] = value;
    sum += value * value;
  }
  return sum;
}

void forward(const float* residual, const float* delta, const float* weight, float epsilon,
             float* residual_out, float* y, float* inverse_rms, std::int64_t rows,
             std::int64_t hidden, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* x = residual + row * hidden;
    float sum;
    if (delta != nullptr) {
      float* out = residual_out + row * hidden;
      sum = add_with_sum_of_squares(x, delta + row * hidden, out, hidden);
      x = out;
    } else {
      sum = sum_of_squares(x, hidden);
    }
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(hidden) + epsilon);
    if (inverse_rms != nullptr) inverse_rms[row] = scale;
    normalize(x, weight, scale, y + row * hidden, hidden);
  }
}

void recompute(const float* x, const float* weight, const float* inverse_rms, float* y,
               std::int64_t rows, std::int64_t hidden, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row)
    normalize(x + row * hidden, weight, inverse_rms[row], y + row * hidden, hidden);
}

// With g = dy · weight: dx += rstd · (g - x · rstd² · mean(g · x)).
void backward_row(const float* x, const float* weight, float inverse_rms, const float* dy,
                  float* dx, std::int64_t hidden) {
  float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < hidden; ++i) dot += dy[i] * weight[i] * x[i];
  const float slope = dot * inverse_rms * inverse_rms * inverse_rms / static_cast<float>(hidden);
#pragma omp simd
  for (std::int64_t i = 0; i < hidden; ++i) dx[i] += dy[i] * weight[i] * inverse_rms - x[i] * slope;
}

void backward(const float* x, const float* weight, const float* inverse_rms, const float* dy,
              float* dx, float* dweight_blocks, std::int64_t rows, std::int64_t hidden,
              int threads) {
  const std::int64_t num_blocks = (rows + kRmsnormBlockRows - 1) / kRmsnormBlockRows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    const std::int64_t begin = block * kRmsnormBlockRows;
    const std::int64_t end = begin + kRmsnormBlockRows < rows ? begin + kRmsnormBlockRows : rows;
    float* dweight = dweight_blocks == nullptr ? nullptr : dweight_blocks + block * hidden;
    if (dweight != nullptr) {
      for (std::int64_t i = 0; i < hidden; ++i) dweight[i] = 0.0f;
    }
    for (std::int64_t row = begin; row < end; ++row) {
      const float* x_row = x + row * hidden;
      const float* dy_row = dy + row * hidden;
      const float scale = inverse_rms[row];
      backward_row(x_row, weight, scale, dy_row, dx + row * hidden, hidden);
      if (dweight == nullptr) continue;
#pragma omp simd
      for (std::int64_t i = 0; i < hidden; ++i) dweight[i] += dy_row[i] * (x_row[i] * scale);
    }
  }
}

void add_blocks(const float* dweight_blocks, std::int64_t num_blocks, std::int64_t hidden,
                float* dweight) {
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    const float* from = dweight_blocks + block * hidden;
#pragma omp simd
    for (std::int64_t i = 0; i < hidden; ++i) dweight[i] += from[i];
  }
}

}  // namespace

const RmsnormKernels rmsnorm_kernels = {forward, recompute, backward, add_blocks};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
