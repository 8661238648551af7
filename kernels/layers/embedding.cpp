#include "kernels/layers/embedding.h"

#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/layers/embedding_cpu.h"
#include "kernels/layers/embedding_cuda.h"

namespace chaski {
namespace {

void require_tokens(const char* op, const Tensor& tokens, std::int64_t vocab_size) {
  const std::int32_t* ids = tokens.i32();
  const std::int64_t count = tokens.num_elements();
  for (std::int64_t t = 0; t < count; ++t) {
    if (ids[t] >= 0 && ids[t] < vocab_size) continue;
    throw std::invalid_argument(
        fmt::format("{}: token {} has the id {}, which is not in the vocabulary of {} (0 to {})",
                    op, t, ids[t], vocab_size, vocab_size - 1));
  }
}

}  // namespace

void embedding_forward(const Tensor& table, const Tensor& tokens, const Tensor& out) {
  constexpr const char* kOp = "embedding_forward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, table);
  const std::int64_t hidden = table.shape().back();
  const std::int64_t num_tokens = tokens.num_elements();
  require_dtype(kOp, "tokens", tokens, DType::i32);
  require_matrix(kOp, "out", out, num_tokens, hidden);
  if (device.is_counting()) return count_op(device, kOp, {tokens, out, out});
  CHASKI_CUDA_OP(device, embedding_forward(table, tokens, out));
  require_tokens(kOp, tokens, table.shape().num_rows());
  CHASKI_CPU_KERNELS(embedding_kernels)
      .forward(table.f32(), tokens.i32(), out.f32(), num_tokens, hidden,
               threads_for(device, num_tokens * hidden));
}

void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& dtable) {
  constexpr const char* kOp = "embedding_backward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, dtable);
  const std::int64_t hidden = dtable.shape().back();
  const std::int64_t num_tokens = tokens.num_elements();
  require_dtype(kOp, "tokens", tokens, DType::i32);
  require_matrix(kOp, "dout", dout, num_tokens, hidden);
  if (device.is_counting()) return count_op(device, kOp, {tokens, dout, dout, dout});
  CHASKI_CUDA_OP(device, embedding_backward(dout, tokens, dtable));
  require_tokens(kOp, tokens, dtable.shape().num_rows());
  CHASKI_CPU_KERNELS(embedding_kernels)
      .backward(dout.f32(), tokens.i32(), dtable.f32(), num_tokens, hidden,
                threads_for(device, num_tokens * hidden));
}

}  // namespace chaski
