#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"

namespace chaski {
namespace {

constexpr std::int64_t kMaxHeadDim = 256;
// With fewer new tokens than this, packing the cached keys into tiles costs more than it gains.
constexpr std::int64_t kMinTiledQueries = 16;

void require_valid(const char* op, const AttentionShape& shape) {
  if (shape.batch < 0 || shape.sequence_length < 0)
    throw std::invalid_argument(
        fmt::format("{}: {} sequences of {} tokens", op, shape.batch, shape.sequence_length));
  if (shape.head_dim < 1 || shape.head_dim > kMaxHeadDim)
    throw std::invalid_argument(
        fmt::format("{}: head_dim is {}, expected 1 to {}", op, shape.head_dim, kMaxHeadDim));
  if (shape.num_kv_heads < 1 || shape.num_heads < 1 || shape.num_heads % shape.num_kv_heads != 0)
    throw std::invalid_argument(
        fmt::format("{}: num_heads is {}, expected a multiple of "
                    "num_kv_heads, which is {}",
                    op, shape.num_heads, shape.num_kv_heads));
}

void require_positions(const char* op, const AttentionShape& shape, const Tensor& positions) {
  if (positions.empty()) return;
  require_dtype(op, "positions", positions, DType::i32);
  require_elements(op, "positions", positions, shape.num_tokens());
}

// Without operands.
AttentionProblem problem_of(const AttentionShape& shape) {
  AttentionProblem problem{};
  problem.batch = shape.batch;
  problem.num_queries = shape.sequence_length;
  problem.num_heads = shape.num_heads;
  problem.num_kv_heads = shape.num_kv_heads;
  problem.head_dim = shape.head_dim;
  return problem;
}

AttentionProblem fused_problem(const AttentionShape& shape, const Tensor& qkv,
                               const Tensor& positions) {
  const float* queries = qkv.f32();
  return {.batch = shape.batch,
          .num_queries = shape.sequence_length,
          .past = 0,
          .num_heads = shape.num_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .queries = queries,
          .query_stride = shape.qkv_size(),
          .keys = queries + shape.query_size(),
          .values = queries + shape.query_size() + shape.kv_size(),
          .kv_stride = shape.qkv_size(),
          .positions = positions ? positions.i32() : nullptr,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)))};
}

int threads_for_problem(const Device& device, const AttentionProblem& problem) {
  return threads_for(device,
                     problem.batch * problem.num_queries * problem.num_heads * problem.head_dim);
}

// Of all threads.
template <typename Kernel>
Shape scratch_shape(const Device& device, const Kernel& kernel, const AttentionProblem& problem) {
  return {threads_for_problem(device, problem), kernel.scratch_floats(problem)};
}

// Scores of a token with the tokens up to itself, half of all, of all heads: multiply-adds.
double score_products(const AttentionShape& shape) {
  return static_cast<double>(shape.num_tokens()) * static_cast<double>(shape.query_size()) * 0.5 *
         static_cast<double>(shape.sequence_length + 1);
}

// What a pass takes of the workspace at most, with documents or without.
template <typename Kernel>
std::int64_t workspace_bytes(Device& device, AttentionPass pass, const Kernel& cpu,
                             const AttentionShape& shape, [[maybe_unused]] DType activations) {
  if (device.backend() == Backend::cpu) {
    const Shape scratch = scratch_shape(device, cpu, problem_of(shape));
    return charged_bytes(scratch.num_elements() * size_of(DType::f32));
  }
#ifdef CHASKI_CUDA
  if (Device* const gpu = device.counted_model())
    return cuda::attention_workspace_bytes(*gpu, pass, shape, activations);
#endif
  return cuda::tiled_attention_workspace_bytes(pass, shape);
}

void run_forward(Device& device, const AttentionProblem& problem, float* out, float* log_sum_exp) {
  const AttentionForwardKernel& cpu = CHASKI_CPU_KERNELS(attention_forward_kernel);
  const int threads = threads_for_problem(device, problem);
  Workspace::Frame frame(device);
  const Tensor scratch = frame.f32(scratch_shape(device, cpu, problem));
  cpu.run(problem, out, log_sum_exp, scratch.f32(), threads);
}

void append_to_caches(const AttentionProblem& problem, const Tensor& key_cache,
                      const Tensor& value_cache) {
  const std::int64_t kv_size = problem.num_kv_heads * problem.head_dim;
  const auto bytes = static_cast<std::size_t>(kv_size) * sizeof(float);
  for (std::int64_t row = 0; row < problem.num_queries; ++row) {
    const std::int64_t to = (problem.past + row) * kv_size;
    std::memcpy(key_cache.f32() + to, problem.keys + row * problem.kv_stride, bytes);
    std::memcpy(value_cache.f32() + to, problem.values + row * problem.kv_stride, bytes);
  }
}

}  // namespace

void attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                       const Tensor& out, const Tensor& log_sum_exp) {
  constexpr const char* kOp = "attention_forward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, qkv);
  require_valid(kOp, shape);
  require_matrix(kOp, "qkv", qkv, shape.num_tokens(), shape.qkv_size());
  require_positions(kOp, shape, positions);
  require_matrix(kOp, "out", out, shape.num_tokens(), shape.query_size());
  require_elements(kOp, "log_sum_exp", log_sum_exp, shape.num_tokens() * shape.num_heads);
  require_distinct(kOp, "out", out, "qkv", qkv);
  if (device.is_counting()) {
    // Of scores and of values.
    return count_op(
        device, kOp, {qkv, positions, out, log_sum_exp}, 4.0 * score_products(shape),
        workspace_bytes(device, AttentionPass::forward,
                        CHASKI_CPU_KERNELS(attention_forward_kernel), shape, qkv.dtype()));
  }
  CHASKI_CUDA_OP(device, attention_forward(shape, qkv, positions, out, log_sum_exp));
  run_forward(device, fused_problem(shape, qkv, positions), out.f32(), log_sum_exp.f32());
}

void attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                        const Tensor& out, const Tensor& log_sum_exp, const Tensor& dout,
                        const Tensor& dqkv) {
  constexpr const char* kOp = "attention_backward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, qkv);
  require_valid(kOp, shape);
  require_matrix(kOp, "qkv", qkv, shape.num_tokens(), shape.qkv_size());
  require_positions(kOp, shape, positions);
  require_matrix(kOp, "out", out, shape.num_tokens(), shape.query_size());
  require_elements(kOp, "log_sum_exp", log_sum_exp, shape.num_tokens() * shape.num_heads);
  require_matrix(kOp, "dout", dout, shape.num_tokens(), shape.query_size());
  require_matrix(kOp, "dqkv", dqkv, shape.num_tokens(), shape.qkv_size());
  require_distinct(kOp, "dqkv", dqkv, "qkv", qkv);
  if (device.is_counting()) {
    // Scores are computed again: five products instead of four.
    return count_op(
        device, kOp, {qkv, positions, out, log_sum_exp, dout, dqkv}, 10.0 * score_products(shape),
        workspace_bytes(device, AttentionPass::backward,
                        CHASKI_CPU_KERNELS(attention_backward_kernel), shape, qkv.dtype()));
  }
  CHASKI_CUDA_OP(device, attention_backward(shape, qkv, positions, out, log_sum_exp, dout, dqkv));
  const AttentionProblem problem = fused_problem(shape, qkv, positions);
  const AttentionBackwardKernel& cpu = CHASKI_CPU_KERNELS(attention_backward_kernel);
  const int threads = threads_for_problem(device, problem);
  Workspace::Frame frame(device);
  const Tensor scratch = frame.f32(scratch_shape(device, cpu, problem));
  float* dqueries = dqkv.f32();
  float* dkeys = dqueries + shape.query_size();
  cpu.run(problem, out.f32(), log_sum_exp.f32(), dout.f32(), dqueries, dkeys,
          dkeys + shape.kv_size(), scratch.f32(), threads);
}

void attention_decode(const AttentionShape& shape, const Tensor& qkv, std::int64_t past,
                      const Tensor& key_cache, const Tensor& value_cache, const Tensor& out) {
  constexpr const char* kOp = "attention_decode";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, qkv);
  require_valid(kOp, shape);
  if (shape.batch != 1)
    throw std::invalid_argument(fmt::format("{}: batch is {}, expected 1", kOp, shape.batch));
  require_matrix(kOp, "qkv", qkv, shape.num_tokens(), shape.qkv_size());
  require_matrix(kOp, "out", out, shape.num_tokens(), shape.query_size());
  const std::int64_t capacity = key_cache.empty() ? 0 : key_cache.shape().num_rows();
  require_matrix(kOp, "key_cache", key_cache, capacity, shape.kv_size());
  require_matrix(kOp, "value_cache", value_cache, capacity, shape.kv_size());
  if (past < 0 || past + shape.sequence_length > capacity)
    throw std::invalid_argument(fmt::format("{}: {} tokens after {} do not fit a cache of {}", kOp,
                                            shape.sequence_length, past, capacity));
  CHASKI_CUDA_OP(device, attention_decode(shape, qkv, past, key_cache, value_cache, out));

  AttentionProblem problem = fused_problem(shape, qkv, Tensor());
  problem.past = past;
  append_to_caches(problem, key_cache, value_cache);
  problem.keys = key_cache.f32();
  problem.values = value_cache.f32();
  problem.kv_stride = shape.kv_size();
  if (shape.sequence_length >= kMinTiledQueries) {
    run_forward(device, problem, out.f32(), nullptr);
    return;
  }
  const AttentionDecodeKernel& cpu = CHASKI_CPU_KERNELS(attention_decode_kernel);
  Workspace::Frame frame(device);
  const Tensor scratch = frame.f32({cpu.scratch_floats(problem)});
  cpu.run(problem, out.f32(), scratch.f32(),
          threads_for(device, (past + shape.sequence_length) * shape.kv_size()));
}

std::string attention_implementation(Device& device, const AttentionShape& shape,
                                     [[maybe_unused]] DType activations,
                                     [[maybe_unused]] bool documents) {
  require_valid("attention_implementation", shape);
  CHASKI_CUDA_OP(device, attention_implementation(device, shape, activations, documents));
  return "tiles";
}

}  // namespace chaski
