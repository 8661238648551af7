#pragma once

#include <cstdint>

#include "kernels/device/tensor.h"

namespace chaski {

// What the tokens of several micro-batches lost together.
struct LossTotals {
  double sum = 0.0;  // of the losses, nats
  std::int64_t num_targets = 0;
};

// Adds Σ losses and the number of targets that are not kIgnoredTarget to totals [2] f64, in double
// and in the order of the tokens, without waiting for the device. losses [T] f32, targets [T] i32.
void add_loss_totals(const Tensor& losses, const Tensor& targets, const Tensor& totals);

// Waits for the device; reads the totals and sets them to 0. On a counting device: of one target
// that lost nothing, so that a mean of them is finite.
LossTotals take_loss_totals(const Tensor& totals);

}  // namespace chaski
