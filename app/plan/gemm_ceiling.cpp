#include "app/plan/gemm_ceiling.h"

#include <algorithm>
#include <chrono>
#include <span>

#include "kernels/elementwise/elementwise.h"
#include "kernels/measuring/timer.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

struct GemmShape {
  std::int64_t rows, out, in;
};
// y = x · Wᵀ: large enough to amortise packing, small enough to be quick on a laptop.
constexpr GemmShape kCpuShapes[] = {{1024, 1024, 1024}, {2048, 1536, 512}, {512, 2048, 2048}};
// A GPU fills up later; the smaller ones tell whether the larger would take too long.
constexpr GemmShape kGpuShapes[] = {
    {64, 64, 64}, {2048, 2048, 2048}, {8192, 8192, 2048}, {8192, 8192, 8192}};

double gflop_of(const GemmShape& shape) {
  return 2e-9 * static_cast<double>(shape.rows) * static_cast<double>(shape.out) *
         static_cast<double>(shape.in);
}

std::span<const GemmShape> shapes_for(const Device& device) {
  return device.backend() == Backend::cpu ? std::span<const GemmShape>(kCpuShapes) : kGpuShapes;
}

double best_rate(Device& device, const GemmShape& shape, DType type, double budget) {
  Workspace::Frame frame(device);
  const Tensor x = frame.tensor(type, {shape.rows, shape.in});
  const Tensor weight = frame.tensor(type, {shape.out, shape.in});
  const Tensor y = frame.tensor(type, {shape.rows, shape.out});
  fill_normal(x, 0.0f, 1.0f, 1, 1);
  fill_normal(weight, 0.0f, 1.0f, 1, 2);
  linear_forward(x, weight, y);
  device.synchronize();
  const double gflop = gflop_of(shape);
  DeviceTimer timer(device);
  double best = 0.0;
  const auto start = Clock::now();
  do {
    timer.start();
    linear_forward(x, weight, y);
    best = std::max(best, gflop / timer.stop());
  } while (seconds_since(start) < budget);
  return best;
}

}  // namespace

double measure_gemm_ceiling(Device& device, DType type, double seconds) {
  const std::span<const GemmShape> shapes = shapes_for(device);
  double best = 0.0;
  for (const GemmShape& shape : shapes) {
    if (best > 0.0 && gflop_of(shape) / best > seconds) break;
    best = std::max(best,
                    best_rate(device, shape, type, seconds / static_cast<double>(shapes.size())));
  }
  return best;
}

}  // namespace chaski
