#include "app/gemm_ceiling.h"

#include <algorithm>
#include <chrono>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

struct GemmShape {
  std::int64_t rows, out, in;
};
// y = x · Wᵀ: large enough to amortise packing, small enough to be quick on a laptop.
constexpr GemmShape kShapes[] = {{1024, 1024, 1024}, {2048, 1536, 512}, {512, 2048, 2048}};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double best_rate(Device& device, const GemmShape& shape, double budget) {
  Workspace::Frame frame(device);
  const Tensor x = frame.f32({shape.rows, shape.in});
  const Tensor weight = frame.f32({shape.out, shape.in});
  const Tensor y = frame.f32({shape.rows, shape.out});
  fill_normal(x, 0.0f, 1.0f, 1, 1);
  fill_normal(weight, 0.0f, 1.0f, 1, 2);
  linear_forward(x, weight, y);
  device.synchronize();
  const double gflop = 2e-9 * static_cast<double>(shape.rows * shape.out * shape.in);
  double best = 0.0;
  const auto start = Clock::now();
  do {
    const auto begin = Clock::now();
    linear_forward(x, weight, y);
    device.synchronize();
    best = std::max(best, gflop / seconds_since(begin));
  } while (seconds_since(start) < budget);
  return best;
}

}  // namespace

double measure_gemm_ceiling(Device& device, double seconds) {
  double best = 0.0;
  for (const GemmShape& shape : kShapes) {
    best = std::max(best, best_rate(device, shape, seconds / std::size(kShapes)));
  }
  return best;
}

}  // namespace chaski
