#pragma once

#include <string>

#include "kernels/attention/attention.h"
#include "kernels/device/device.h"

namespace chaski::cuda {

// The contracts of kernels/attention/attention.h; the operands have been checked. Forward and
// backward are cuDNN's where it takes such operands, else the tiled kernels.
std::string attention_implementation(Device& device, const AttentionShape& shape, DType activations,
                                     bool documents);
std::int64_t attention_workspace_bytes(Device& device, AttentionPass pass,
                                       const AttentionShape& shape, DType activations);
void attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                       const Tensor& out, const Tensor& log_sum_exp);
void attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                        const Tensor& out, const Tensor& log_sum_exp, const Tensor& dout,
                        const Tensor& dqkv);
void attention_decode(const AttentionShape& shape, const Tensor& qkv, std::int64_t past,
                      const Tensor& key_cache, const Tensor& value_cache, const Tensor& out);

// Always by the tiled kernels. There is at least one token.
void tiled_attention_forward(const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& positions, const Tensor& out, const Tensor& log_sum_exp);
void tiled_attention_backward(const AttentionShape& shape, const Tensor& qkv,
                              const Tensor& positions, const Tensor& out, const Tensor& log_sum_exp,
                              const Tensor& dout, const Tensor& dqkv);

// Of one query with its gradient each: floats that the backward pass keeps in the workspace.
inline std::int64_t num_row_dots(const AttentionShape& shape) {
  return shape.num_tokens() * shape.num_heads;
}
inline std::int64_t tiled_attention_workspace_bytes(AttentionPass pass,
                                                    const AttentionShape& shape) {
  if (pass == AttentionPass::forward) return 0;
  return charged_bytes(num_row_dots(shape) * static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace chaski::cuda
