#pragma once

#include <string>

#include "kernels/device/tensor.h"

namespace chaski {

// Causal grouped-query attention over fused query-key-value rows.
//
// qkv has one row a token: num_heads query heads, then num_kv_heads key heads, then num_kv_heads
// value heads, each of head_dim elements. Query head h reads key/value head
// h / (num_heads / num_kv_heads), as in Hugging Face. Scores are scaled by 1/sqrt(head_dim).
struct AttentionShape {
  std::int64_t batch;
  std::int64_t sequence_length;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;  // 1 … 256

  std::int64_t num_tokens() const { return batch * sequence_length; }
  std::int64_t query_size() const { return num_heads * head_dim; }
  std::int64_t kv_size() const { return num_kv_heads * head_dim; }
  std::int64_t qkv_size() const { return query_size() + 2 * kv_size(); }
};

// Tiles with online softmax: no [S, S] matrix exists (FlashAttention-2, arXiv 2307.08691, Alg. 1).
//   qkv        [B·S, qkv_size]   rotated already
//   positions  [B·S] i32, or empty. Token i of a sequence attends to tokens i - positions[i] … i: a
//              position that restarts at 0 starts a new document. Empty: to 0 … i. Positions above
//              i (a document continued from elsewhere) count as i.
//   out        [B·S, query_size]
//   log_sum_exp [B, num_heads, S]  of the scaled scores, natural logarithm; for the backward pass
void attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                       const Tensor& out, const Tensor& log_sum_exp);

// Recomputes the score tiles from log_sum_exp (Alg. 2). dqkv [B·S, qkv_size] is overwritten; it
// must not be qkv. The result does not depend on the number of threads.
void attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                        const Tensor& out, const Tensor& log_sum_exp, const Tensor& dout,
                        const Tensor& dqkv);

enum class AttentionPass { forward, backward };

// Decoding: the shape's sequence_length new tokens (batch must be 1) at positions past …
// past + sequence_length - 1. Their keys and values are appended to the caches
// [capacity, kv_size] first; then each attends to all up to itself.
void attention_decode(const AttentionShape& shape, const Tensor& qkv, std::int64_t past,
                      const Tensor& key_cache, const Tensor& value_cache, const Tensor& out);

// What runs the forward and the backward pass of such activations on a device, in a few words for
// logs: "cuDNN 9.19.0", or "tiles" (our own kernels) with the reason where a GPU runs them. On a
// GPU the answer for a shape never changes; making it may take seconds the first time.
std::string attention_implementation(Device& device, const AttentionShape& shape, DType activations,
                                     bool documents);

}  // namespace chaski
