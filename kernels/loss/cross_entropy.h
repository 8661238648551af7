#pragma once

#include <span>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// A target that does not count.
inline constexpr std::int32_t kIgnoredTarget = -1;

// The language-model head and its loss in one: logits = hidden · weightᵀ exist for `chunk` tokens
// at a time only (workspace chunk · V).
//   hidden [T, H], weight [V, H], targets [T] i32 (kIgnoredTarget: no loss, no gradient)
//   losses [T] f32: negative log likelihood in nats, 0 where ignored
// On GPUs hidden, weight and dhidden are f32 or bf16 alike, dweight is f32 or bf16, logits are f32
// and their gradient has the type of hidden (in the workspace besides, where that is bf16). Another
// target outside [0, V) throws std::invalid_argument; on a GPU, where nobody waits to look at them,
// its loss and its gradient become NaN.
struct HeadLoss {
  Tensor hidden;
  Tensor weight;
  Tensor targets;
  Tensor losses;
  std::int64_t chunk = 512;
};
void head_loss_forward(const HeadLoss& head);
// Forward and backward in the same pass, so that logits are computed once: dhidden [T, H] is
// overwritten, dweight [V, H] is accumulated to (empty: frozen). Gradients are those of
// scale · Σ losses.
void head_loss_forward_backward(const HeadLoss& head, float scale, const Tensor& dhidden,
                                const Tensor& dweight);

// weights[i] = exp((logits[i] - their maximum) / temperature), in host memory: what a next token is
// drawn from. As many weights as logits; temperature above 0.
void softmax_weights(std::span<const float> logits, float temperature, std::span<float> weights);

}  // namespace chaski
