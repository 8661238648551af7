#include "kernels/device/cuda_device.h"
#include "kernels/device/cuda_launch.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/loss_totals_cuda.h"

namespace chaski::cuda {
namespace {

constexpr int kThreads = 1024;

// One block: some ten thousand numbers, always added in the same order.
__global__ void __launch_bounds__(kThreads)
    add_kernel(const float* losses, const std::int32_t* targets, double* totals,
               std::int64_t count) {
  double loss = 0.0;
  double num_targets = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
    loss += losses[i];
    num_targets += targets[i] != kIgnoredTarget ? 1.0 : 0.0;
  }
  loss = block_sum<kThreads>(loss);
  num_targets = block_sum<kThreads>(num_targets);
  if (threadIdx.x == 0) {
    totals[0] += loss;
    totals[1] += num_targets;
  }
}

}  // namespace

void add_loss_totals(const Tensor& losses, const Tensor& targets, const Tensor& totals) {
  launch(losses.device(), "add_loss_totals", {grid_of(1), kThreads}, add_kernel, losses.f32(),
         targets.i32(), totals.as<double>(), losses.num_elements());
}

}  // namespace chaski::cuda
