#include "kernels/attention/attention_cuda.h"

#include <algorithm>

#include "kernels/attention/cudnn_attention.h"
#include "kernels/device/device.h"

namespace chaski::cuda {
namespace {

// Why the tiled kernels run; empty where cuDNN does.
std::string reason_for_tiles(Device& device, const AttentionShape& shape, DType activations,
                             bool documents) {
  if (activations != DType::bf16) return "cuDNN takes no f32";
  if (documents) return "cuDNN takes no documents";
  if (shape.head_dim % 8 != 0) return "cuDNN takes heads of multiples of 8";
  return cudnn_refusal(device, shape);
}

bool cudnn_takes(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions) {
  return reason_for_tiles(qkv.device(), shape, qkv.dtype(), !positions.empty()).empty();
}

}  // namespace

std::string attention_implementation(Device& device, const AttentionShape& shape, DType activations,
                                     bool documents) {
  const std::string reason = reason_for_tiles(device, shape, activations, documents);
  return reason.empty() ? describe_cudnn() : "tiles (" + reason + ")";
}

std::int64_t attention_workspace_bytes(Device& device, AttentionPass pass,
                                       const AttentionShape& shape, DType activations) {
  const std::int64_t tiled = tiled_attention_workspace_bytes(pass, shape);
  constexpr bool kDocuments = false;
  if (!reason_for_tiles(device, shape, activations, kDocuments).empty()) return tiled;
  return std::max(tiled, cudnn_workspace_bytes(device, pass, shape));
}

void attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                       const Tensor& out, const Tensor& log_sum_exp) {
  if (shape.num_tokens() == 0) return;
  if (cudnn_takes(shape, qkv, positions)) {
    cudnn_attention_forward(shape, qkv, out, log_sum_exp);
  } else {
    tiled_attention_forward(shape, qkv, positions, out, log_sum_exp);
  }
}

void attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                        const Tensor& out, const Tensor& log_sum_exp, const Tensor& dout,
                        const Tensor& dqkv) {
  if (shape.num_tokens() == 0) return;
  if (cudnn_takes(shape, qkv, positions)) {
    cudnn_attention_backward(shape, qkv, out, log_sum_exp, dout, dqkv);
  } else {
    tiled_attention_backward(shape, qkv, positions, out, log_sum_exp, dout, dqkv);
  }
}

}  // namespace chaski::cuda
