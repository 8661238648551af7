#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

// Queries of a tile and keys of a tile. Tiles start at multiples of it.
inline constexpr std::int64_t kAttentionTile = 64;

// Rows of queries, keys and values may lie anywhere; heads lie side by side in a row. Query i of a
// sequence sees keys first … past + i, where first is 0, or past + i - positions[i].
struct AttentionProblem {
  std::int64_t batch;
  std::int64_t num_queries;  // a sequence
  std::int64_t past;         // a sequence has past + num_queries keys
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  const float* queries;
  std::int64_t query_stride;  // elements between rows
  const float* keys;
  const float* values;
  std::int64_t kv_stride;
  const std::int32_t* positions;  // [batch · num_queries] or null
  float scale;                    // of the scores
};

// Each kernel's `scratch_floats` says how much scratch a thread needs; it gets `threads` times as
// much. The results do not depend on the number of threads.

struct AttentionForwardKernel {
  std::int64_t (*scratch_floats)(const AttentionProblem& problem);
  // out [tokens, num_heads · head_dim]; log_sum_exp [batch, num_heads, num_queries] or null.
  void (*run)(const AttentionProblem& problem, float* out, float* log_sum_exp, float* scratch,
              int threads);
};
CHASKI_DECLARE_KERNELS(AttentionForwardKernel, attention_forward_kernel)

struct AttentionBackwardKernel {
  std::int64_t (*scratch_floats)(const AttentionProblem& problem);
  // past is 0. The gradients have the strides of the queries and of the keys.
  void (*run)(const AttentionProblem& problem, const float* out, const float* log_sum_exp,
              const float* dout, float* dqueries, float* dkeys, float* dvalues, float* scratch,
              int threads);
};
CHASKI_DECLARE_KERNELS(AttentionBackwardKernel, attention_backward_kernel)

// The forward pass for one sequence (batch is 1) of few queries without positions: bound by
// reading the keys and values once a query.
struct AttentionDecodeKernel {
  // In all, for any number of threads.
  std::int64_t (*scratch_floats)(const AttentionProblem& problem);
  void (*run)(const AttentionProblem& problem, float* out, float* scratch, int threads);
};
CHASKI_DECLARE_KERNELS(AttentionDecodeKernel, attention_decode_kernel)

}  // namespace chaski
