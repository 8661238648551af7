#include "app/bench_op_list.h"

#include <algorithm>
#include <iterator>

#include "app/bench_report.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"
#include "kernels/rmsnorm.h"
#include "kernels/rotary.h"
#include "kernels/swiglu.h"

namespace chaski {
namespace {

using Operands = std::vector<Tensor>;

constexpr float kEpsilon = 1e-6f;
// The optimizer's and the norm's ops see the parameters piece by piece; larger ones would only take
// longer.
constexpr std::int64_t kMaxParameters = std::int64_t{1} << 24;

// Sizes of a training step, as factors of byte counts.
struct Sizes {
  Sizes(const LlamaConfig& config, const BenchTokens& batch)
      : attention{batch.tokens.dim(0), batch.tokens.dim(1), config.num_heads, config.num_kv_heads,
                  config.head_dim},
        tokens(batch.tokens.num_elements()),
        hidden(config.hidden_size),
        ffn(config.intermediate_size),
        vocabulary(config.vocab_size),
        parameters(std::min(kMaxParameters, config.num_parameters())) {}

  AttentionShape attention;
  std::int64_t tokens, hidden, ffn, vocabulary, parameters;
};

double bytes_of(std::int64_t floats) {
  return static_cast<double>(floats) * sizeof(float);
}

std::vector<BenchOp> embedding_ops(const Sizes& s, const BenchTokens& batch) {
  const Tensor ids = batch.tokens.view({s.tokens});
  const std::vector<Shape> operands = {{s.vocabulary, s.hidden}, {s.tokens, s.hidden}};
  return {
      {"embedding_forward", OpBound::mixed, bytes_of(2 * s.tokens * s.hidden + s.tokens), operands,
       [ids](const Operands& x) { return timed([&] { embedding_forward(x[0], ids, x[1]); }); }},
      {"embedding_backward", OpBound::mixed, bytes_of(3 * s.tokens * s.hidden + s.tokens), operands,
       [ids](const Operands& x) { return timed([&] { embedding_backward(x[1], ids, x[0]); }); }},
  };
}

std::vector<BenchOp> norm_ops(const Sizes& s) {
  const Shape matrix = {s.tokens, s.hidden};
  const Shape weight = {s.hidden};
  const Shape inverse_rms = {s.tokens};
  const std::int64_t pass = s.tokens * s.hidden;
  const std::int64_t small = s.tokens + s.hidden;
  return {
      {"rmsnorm_forward",
       OpBound::mixed,
       bytes_of(2 * pass + small),
       {matrix, weight, matrix, inverse_rms},
       [](const Operands& x) {
         return timed([&] { rmsnorm_forward(x[0], x[1], kEpsilon, x[2], x[3]); });
       }},
      {"add_rmsnorm_forward",
       OpBound::mixed,
       bytes_of(4 * pass + small),
       {matrix, matrix, weight, matrix, matrix, inverse_rms},
       [](const Operands& x) {
         return timed([&] { add_rmsnorm_forward(x[0], x[1], x[2], kEpsilon, x[3], x[4], x[5]); });
       }},
      {"rmsnorm_recompute",
       OpBound::mixed,
       bytes_of(2 * pass + small),
       {matrix, weight, inverse_rms, matrix},
       [](const Operands& x) { return timed([&] { rmsnorm_recompute(x[0], x[1], x[2], x[3]); }); }},
      {"rmsnorm_backward",
       OpBound::mixed,
       bytes_of(4 * pass + small + 2 * s.hidden),
       {matrix, weight, inverse_rms, matrix, matrix, weight},
       [](const Operands& x) {
         return timed([&] { rmsnorm_backward(x[0], x[1], x[2], x[3], x[4], x[5]); });
       }},
  };
}

std::vector<BenchOp> attention_ops(const Sizes& s) {
  const AttentionShape shape = s.attention;
  const Shape qkv = {s.tokens, shape.qkv_size()};
  const Shape out = {s.tokens, shape.query_size()};
  const Shape log_sum_exp = {s.tokens * shape.num_heads};
  const Shape table = {shape.sequence_length, shape.head_dim};
  // Two products of head_dim for each query and each key that it sees.
  const double forward = 2.0 * static_cast<double>(s.tokens * shape.query_size()) *
                         static_cast<double>(shape.sequence_length + 1);
  return {
      {"rotary_forward",
       OpBound::mixed,
       bytes_of(2 * s.tokens * (shape.query_size() + shape.kv_size()) +
                shape.sequence_length * shape.head_dim),
       {qkv, table},
       [shape](const Operands& x) {
         const double seconds = timed([&] { rotary_forward(shape, x[0], {}, 0, x[1]); });
         fill(x[0], 1.0f);  // in place with any factors: would grow
         return seconds;
       }},
      {"attention_forward",
       OpBound::gemm,
       forward,
       {qkv, out, log_sum_exp},
       [shape](const Operands& x) {
         return timed([&] { attention_forward(shape, x[0], {}, x[1], x[2]); });
       }},
      // Without the scores that are computed again.
      {"attention_backward",
       OpBound::gemm,
       2.0 * forward,
       {qkv, out, log_sum_exp, out, qkv},
       [shape](const Operands& x) {
         return timed([&] { attention_backward(shape, x[0], {}, x[1], x[2], x[3], x[4]); });
       }},
  };
}

std::vector<BenchOp> swiglu_ops(const Sizes& s) {
  const Shape gate_up = {s.tokens, 2 * s.ffn};
  const Shape activation = {s.tokens, s.ffn};
  return {
      {"swiglu_forward",
       OpBound::mixed,
       bytes_of(3 * s.tokens * s.ffn),
       {gate_up, activation},
       [](const Operands& x) { return timed([&] { swiglu_forward(x[0], x[1]); }); }},
      {"swiglu_backward",
       OpBound::mixed,
       bytes_of(6 * s.tokens * s.ffn),
       {gate_up, activation},
       [](const Operands& x) {
         const double seconds = timed([&] { swiglu_backward(x[0], x[1], x[0], x[1]); });
         for (const Tensor& operand : x) fill(operand, 0.5f);  // in place: would grow
         return seconds;
       }},
  };
}

std::vector<BenchOp> head_ops(const Sizes& s, const BenchTokens& batch) {
  const std::vector<Shape> operands = {{s.tokens, s.hidden},
                                       {s.vocabulary, s.hidden},
                                       {s.tokens},
                                       {s.tokens, s.hidden},
                                       {s.vocabulary, s.hidden}};
  const Tensor targets = batch.targets.view({s.tokens});
  const auto run = [targets](const Operands& x) {
    fill(x[0], 0.01f);  // logits of a common size: no underflow in the gradient
    HeadLoss head;
    head.hidden = x[0];
    head.weight = x[1];
    head.targets = targets;
    head.losses = x[2];
    return timed([&] { head_loss_forward_backward(head, 1.0f, x[3], x[4]); });
  };
  return {
      {"head_loss", OpBound::gemm,
       6.0 * static_cast<double>(s.tokens * s.hidden) * static_cast<double>(s.vocabulary), operands,
       run},
      // The part of it that is no product: logits are read, their gradient takes their place.
      {"cross_entropy", OpBound::mixed, bytes_of(2 * s.tokens * s.vocabulary), operands,
       [run](const Operands& x) {
         const Profile profile;
         run(x);
         return profile.seconds_of("cross_entropy");
       }},
  };
}

std::vector<BenchOp> optimizer_ops(const Sizes& s) {
  const Shape all = {s.parameters};
  return {
      {"adamw",
       OpBound::mixed,
       bytes_of(7 * s.parameters),
       {all, all, all, all},
       [](const Operands& x) {
         const AdamWHyperparameters hyperparameters = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 100, 1.0f};
         return timed([&] { adamw_step(hyperparameters, x[0], x[1], x[2], x[3]); });
       }},
      {"sum_of_squares",
       OpBound::read,
       bytes_of(s.parameters),
       {all},
       [](const Operands& x) { return timed([&] { sum_of_squares(x[0]); }); }},
      {"zero_gradients",
       OpBound::write,
       bytes_of(s.parameters),
       {all},
       [](const Operands& x) { return timed([&] { fill(x[0], 0.0f); }); }},
  };
}

std::vector<BenchOp> decoding_ops(const Sizes& s) {
  return {
      {"one_row_product",
       OpBound::read,
       bytes_of(s.vocabulary * s.hidden + s.hidden + s.vocabulary),
       {{1, s.hidden}, {s.vocabulary, s.hidden}, {1, s.vocabulary}},
       [](const Operands& x) { return timed([&] { linear_forward(x[0], x[1], x[2]); }); }},
  };
}

}  // namespace

const char* name_of(OpBound bound) {
  switch (bound) {
    case OpBound::gemm:
      return "gemm";
    case OpBound::read:
      return "read";
    case OpBound::write:
      return "write";
    case OpBound::mixed:
      return "copy/triad";
  }
  return "unknown";
}

std::vector<BenchOp> bench_ops(const LlamaConfig& config, const BenchTokens& batch) {
  const Sizes sizes(config, batch);
  std::vector<BenchOp> ops;
  for (std::vector<BenchOp>& some : std::vector<std::vector<BenchOp>>{
           embedding_ops(sizes, batch), norm_ops(sizes), attention_ops(sizes), swiglu_ops(sizes),
           head_ops(sizes, batch), optimizer_ops(sizes), decoding_ops(sizes)}) {
    std::move(some.begin(), some.end(), std::back_inserter(ops));
  }
  return ops;
}

}  // namespace chaski
