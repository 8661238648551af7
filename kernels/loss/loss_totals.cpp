#include "kernels/loss/loss_totals.h"

#include <algorithm>

#include "kernels/device/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/loss_totals_cuda.h"

namespace chaski {

void add_loss_totals(const Tensor& losses, const Tensor& targets, const Tensor& totals) {
  constexpr const char* kOp = "add_loss_totals";
  Device& device = device_of(kOp, losses);
  const std::int64_t count = losses.num_elements();
  require_dtype(kOp, "losses", losses, DType::f32);
  require_dtype(kOp, "targets", targets, DType::i32);
  require_elements(kOp, "targets", targets, count);
  require_dtype(kOp, "totals", totals, DType::f64);
  require_elements(kOp, "totals", totals, 2);
  if (device.is_counting()) {
    if (device.backend() == Backend::cpu) sum(losses);
    return count_op(device, kOp, {losses, targets});
  }
  CHASKI_CUDA_OP(device, add_loss_totals(losses, targets, totals));
  const std::int32_t* ids = targets.i32();
  totals.as<double>()[0] += sum(losses);
  totals.as<double>()[1] +=
      static_cast<double>(count - std::count(ids, ids + count, kIgnoredTarget));
}

LossTotals take_loss_totals(const Tensor& totals) {
  if (totals.device().is_counting()) return {.sum = 0.0, .num_targets = 1};
  double values[2];
  copy_to_host(totals, values);
  constexpr double kZeros[2] = {};
  copy_from_host(kZeros, totals);
  return {values[0], static_cast<std::int64_t>(values[1])};
}

}  // namespace chaski
