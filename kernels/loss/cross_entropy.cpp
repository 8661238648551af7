#include "kernels/loss/cross_entropy.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/cross_entropy_cpu.h"
#include "kernels/loss/cross_entropy_cuda.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

// The part that is not a product.
constexpr const char* kProfiledName = "cross_entropy";

// A head whose operands have been checked.
struct CheckedHead {
  Device& device;
  std::int64_t num_tokens;
  std::int64_t hidden_size;
  std::int64_t vocab_size;
};

void require_targets(const char* op, const Tensor& targets, std::int64_t vocab_size) {
  const std::int32_t* ids = targets.i32();
  const std::int64_t count = targets.num_elements();
  for (std::int64_t t = 0; t < count; ++t) {
    if (ids[t] == kIgnoredTarget || (ids[t] >= 0 && ids[t] < vocab_size)) continue;
    throw std::invalid_argument(fmt::format(
        "{}: target {} has the id {}, which is not in the vocabulary of {} (0 to {}, or "
        "{} to ignore)",
        op, t, ids[t], vocab_size, vocab_size - 1, kIgnoredTarget));
  }
}

// Whether the host can look at the targets, without waiting for a device.
bool host_sees(const Tensor& targets) {
  const Device& device = targets.device();
  return device.backend() == Backend::cpu && !device.is_counting();
}

CheckedHead check(const char* op, const HeadLoss& head) {
  Device& device = device_of(op, head.hidden);
  const std::int64_t num_tokens = head.hidden.shape().num_rows();
  const std::int64_t hidden_size = head.hidden.shape().back();
  device_of(op, head.weight);
  const std::int64_t vocab_size = head.weight.shape().num_rows();
  require_matrix(op, "weight", head.weight, vocab_size, hidden_size);
  require_elements(op, "targets", head.targets, num_tokens);
  require_dtype(op, "targets", head.targets, DType::i32);
  require_elements(op, "losses", head.losses, num_tokens);
  if (head.chunk < 1)
    throw std::invalid_argument(fmt::format("{}: chunk is {}, expected 1 or more", op, head.chunk));
  if (host_sees(head.targets)) require_targets(op, head.targets, vocab_size);
  return {device, num_tokens, hidden_size, vocab_size};
}

// Whether the host sees that none of these targets counts.
bool all_ignored(const Tensor& targets) {
  if (!host_sees(targets)) return false;
  const std::int32_t* ids = targets.i32();
  return std::all_of(ids, ids + targets.num_elements(), [](std::int32_t id) { return id < 0; });
}

// Some neighbouring tokens, whose logits exist.
struct Chunk {
  std::int64_t begin;
  std::int64_t count;
  Tensor targets;
  Tensor losses;
};

// Calls work(chunk, logits of its tokens) chunk by chunk. Where no token of a chunk counts, the
// losses become 0 and skip(chunk) is called instead.
template <typename Work, typename Skip>
void for_each_chunk(const CheckedHead& checked, const HeadLoss& head, Work work, Skip skip) {
  Workspace::Frame frame(checked.device);
  const std::int64_t size = std::min(head.chunk, checked.num_tokens);
  const Tensor logits_buffer = frame.f32({size, checked.vocab_size});
  const Tensor hidden = head.hidden.view({checked.num_tokens, checked.hidden_size});
  const Tensor targets = head.targets.view({checked.num_tokens});
  const Tensor losses = head.losses.view({checked.num_tokens});
  for_each_part(
      checked.device, checked.num_tokens, size, [&](std::int64_t begin, std::int64_t count) {
        const Chunk chunk = {begin, count, targets.rows(begin, count), losses.rows(begin, count)};
        if (all_ignored(chunk.targets)) {
          fill(chunk.losses, 0.0f);
          return skip(chunk);
        }
        const Tensor logits = logits_buffer.rows(0, count);
        linear_forward(hidden.rows(begin, count), head.weight, logits);
        work(chunk, logits);
      });
}

void losses_of(const CheckedHead& checked, const Chunk& chunk, const Tensor& logits) {
  const ProfileScope scope(kProfiledName);
  if (checked.device.is_counting())
    return count_op(checked.device, kProfiledName, {logits, chunk.targets, chunk.losses});
  CHASKI_CUDA_OP(checked.device,
                 cross_entropy(logits, chunk.targets, chunk.losses, 0.0f, Tensor()));
  CHASKI_CPU_KERNELS(cross_entropy_kernels)
      .forward(logits.f32(), chunk.targets.i32(), chunk.losses.f32(), chunk.count,
               checked.vocab_size, threads_for(checked.device, logits.num_elements()));
}

// dlogits may be logits, and is on the CPU.
void losses_and_gradient_of(const CheckedHead& checked, const Chunk& chunk, const Tensor& logits,
                            float scale, [[maybe_unused]] const Tensor& dlogits) {
  const ProfileScope scope(kProfiledName);
  if (checked.device.is_counting()) {
    // For the sum of their exponentials, then for the gradient.
    return count_op(checked.device, kProfiledName,
                    {logits, logits, dlogits, chunk.targets, chunk.losses});
  }
  CHASKI_CUDA_OP(checked.device,
                 cross_entropy(logits, chunk.targets, chunk.losses, scale, dlogits));
  CHASKI_CPU_KERNELS(cross_entropy_kernels)
      .forward_backward(logits.f32(), chunk.targets.i32(), chunk.losses.f32(), scale, chunk.count,
                        checked.vocab_size, threads_for(checked.device, logits.num_elements()));
}

}  // namespace

void softmax_weights(std::span<const float> logits, float temperature, std::span<float> weights) {
  if (weights.size() != logits.size() || !(temperature > 0.0f))
    throw std::invalid_argument(
        fmt::format("softmax_weights: {} logits, {} weights, temperature {}", logits.size(),
                    weights.size(), temperature));
  // Above it, the maximum's 0 times infinity would be NaN.
  constexpr float kMostInverse = 1e30f;
  CHASKI_CPU_KERNELS(cross_entropy_kernels)
      .weights(logits.data(), std::min(1.0f / temperature, kMostInverse), weights.data(),
               static_cast<std::int64_t>(logits.size()));
}

void head_loss_forward(const HeadLoss& head) {
  const CheckedHead checked = check("head_loss_forward", head);
  const auto forward_chunk = [&](const Chunk& chunk, const Tensor& logits) {
    losses_of(checked, chunk, logits);
  };
  for_each_chunk(checked, head, forward_chunk, [](const Chunk&) {});
}

void head_loss_forward_backward(const HeadLoss& head, float scale, const Tensor& dhidden,
                                const Tensor& dweight) {
  constexpr const char* kOp = "head_loss_forward_backward";
  const CheckedHead checked = check(kOp, head);
  require_matrix(kOp, "dhidden", dhidden, checked.num_tokens, checked.hidden_size);
  require_distinct(kOp, "dhidden", dhidden, "hidden", head.hidden);
  if (dweight) require_matrix(kOp, "dweight", dweight, checked.vocab_size, checked.hidden_size);
  const Tensor hidden = head.hidden.view({checked.num_tokens, checked.hidden_size});
  const Tensor dhidden_rows = dhidden.view({checked.num_tokens, checked.hidden_size});

  const auto forward_backward_chunk = [&](const Chunk& chunk, const Tensor& logits) {
    Workspace::Frame frame(checked.device);
    const DType type = hidden.dtype();
    const Tensor dlogits = type == logits.dtype() ? logits : frame.tensor(type, logits.shape());
    losses_and_gradient_of(checked, chunk, logits, scale, dlogits);
    linear_backward_input(dlogits, head.weight, dhidden_rows.rows(chunk.begin, chunk.count));
    if (dweight) linear_backward_weight(dlogits, hidden.rows(chunk.begin, chunk.count), dweight);
  };
  const auto skip_chunk = [&](const Chunk& chunk) {
    fill(dhidden_rows.rows(chunk.begin, chunk.count), 0.0f);
  };
  for_each_chunk(checked, head, forward_backward_chunk, skip_chunk);
}

}  // namespace chaski
