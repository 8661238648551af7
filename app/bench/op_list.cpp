#include "app/bench/op_list.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "app/bench/report.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/rotary.h"
#include "kernels/device/profile.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/embedding.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/layers/swiglu.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/moc/products.h"
#include "kernels/optimizer/adamw.h"
#include "kernels/products/matmul.h"
#include "model/ffn.h"

namespace chaski {
namespace {

using Operands = std::vector<Tensor>;

constexpr float kEpsilon = 1e-6f;
// The optimizer's and the norm's ops see the parameters piece by piece; larger ones would only take
// longer. A GPU's cache is that much larger.
constexpr std::int64_t kMaxParametersOnCpu = std::int64_t{1} << 24;
constexpr std::int64_t kMaxParametersOnGpu = std::int64_t{1} << 26;

std::int64_t parameters_of(const LlamaConfig& config, const Device& device) {
  const bool cpu = device.backend() == Backend::cpu;
  return std::min(cpu ? kMaxParametersOnCpu : kMaxParametersOnGpu, config.num_parameters());
}

// Sizes of a training step.
struct Sizes {
  Sizes(const LlamaConfig& config, const BenchTokens& batch, const TensorTypes& types)
      : attention{batch.tokens.dim(0), batch.tokens.dim(1), config.num_heads, config.num_kv_heads,
                  config.head_dim},
        tokens(batch.tokens.num_elements()),
        hidden(config.hidden_size),
        ffn(config.intermediate_size),
        vocabulary(config.vocab_size),
        parameters(parameters_of(config, batch.tokens.device())),
        types(types) {}

  // What ops compute with, and gradients of weights.
  BenchOperand computed(Shape shape) const { return {shape, types.compute}; }
  BenchOperand gradient(Shape shape) const { return {shape, types.gradients}; }

  AttentionShape attention;
  std::int64_t tokens, hidden, ffn, vocabulary, parameters;
  TensorTypes types;
};

std::vector<BenchOp> embedding_ops(const Sizes& s, const BenchTokens& batch) {
  const Tensor ids = batch.tokens.view({s.tokens});
  const Shape table = {s.vocabulary, s.hidden};
  const BenchOperand rows = s.computed({s.tokens, s.hidden});
  return {
      {"embedding_forward",
       OpBound::mixed,
       {s.computed(table), rows},
       [ids](const Operands& x) { embedding_forward(x[0], ids, x[1]); }},
      {"embedding_backward",
       OpBound::mixed,
       {s.gradient(table), rows},
       [ids](const Operands& x) { embedding_backward(x[1], ids, x[0]); }},
  };
}

std::vector<BenchOp> norm_ops(const Sizes& s) {
  const BenchOperand matrix = s.computed({s.tokens, s.hidden});
  const BenchOperand weight = s.computed({s.hidden});
  const BenchOperand inverse_rms = {{s.tokens}};
  return {
      {"rmsnorm_forward",
       OpBound::mixed,
       {matrix, weight, matrix, inverse_rms},
       [](const Operands& x) { rmsnorm_forward(x[0], x[1], kEpsilon, x[2], x[3]); }},
      {"add_rmsnorm_forward",
       OpBound::mixed,
       {matrix, matrix, weight, matrix, matrix, inverse_rms},
       [](const Operands& x) {
         add_rmsnorm_forward(x[0], x[1], x[2], kEpsilon, x[3], x[4], x[5]);
       }},
      {"rmsnorm_recompute",
       OpBound::mixed,
       {matrix, weight, inverse_rms, matrix},
       [](const Operands& x) { rmsnorm_recompute(x[0], x[1], x[2], x[3]); }},
      {"rmsnorm_backward",
       OpBound::mixed,
       {matrix, weight, inverse_rms, matrix, matrix, s.gradient({s.hidden})},
       [](const Operands& x) { rmsnorm_backward(x[0], x[1], x[2], x[3], x[4], x[5]); }},
  };
}

// For ops that work in place: their operands would grow.
void fill_all(const Operands& x) {
  for (const Tensor& operand : x) fill(operand, 0.5f);
}

std::vector<BenchOp> attention_ops(const Sizes& s) {
  const AttentionShape shape = s.attention;
  const BenchOperand qkv = s.computed({s.tokens, shape.qkv_size()});
  const BenchOperand out = s.computed({s.tokens, shape.query_size()});
  const BenchOperand log_sum_exp = {{s.tokens * shape.num_heads}};
  const BenchOperand table = {{shape.sequence_length, shape.head_dim}};
  return {
      {"rotary_forward",
       OpBound::mixed,
       {qkv, table},
       [shape](const Operands& x) { rotary_forward(shape, x[0], {}, 0, x[1]); },
       fill_all},
      {"attention_forward",
       OpBound::gemm,
       {qkv, out, log_sum_exp},
       [shape](const Operands& x) { attention_forward(shape, x[0], {}, x[1], x[2]); }},
      {"attention_backward",
       OpBound::gemm,
       {qkv, out, log_sum_exp, out, qkv},
       [shape](const Operands& x) { attention_backward(shape, x[0], {}, x[1], x[2], x[3], x[4]); }},
  };
}

std::vector<BenchOp> swiglu_ops(const Sizes& s) {
  const BenchOperandList operands = {s.computed({s.tokens, 2 * s.ffn}),
                                     s.computed({s.tokens, s.ffn})};
  return {
      {"swiglu_forward", OpBound::mixed, operands,
       [](const Operands& x) { swiglu_forward(x[0], x[1]); }},
      {"swiglu_backward", OpBound::mixed, operands,
       [](const Operands& x) { swiglu_backward(x[0], x[1], x[0], x[1]); }, fill_all},
  };
}

// With the default number of channels.
MocShape default_moc_shape(const LlamaConfig& config) {
  LlamaConfig with_moc = config;
  if (!with_moc.moc) with_moc.moc.emplace();
  with_moc.resolve();
  return moc_shape(with_moc, std::nullopt);
}

// Backward what was kept has to be a selection: that of a forward pass.
std::vector<BenchOp> moc_ops(const MocShape& shape, const Sizes& s) {
  const BenchOperand row = s.computed({s.tokens, shape.keep});
  const BenchOperandList operands = {s.computed({s.tokens, 2 * s.ffn}),
                                     s.computed({s.tokens, s.ffn}),
                                     row,
                                     row,
                                     {{s.tokens, shape.index_bytes()}, DType::u8}};
  const auto forward = [shape](const Operands& x) {
    moc_forward(shape, x[0], {x[2], x[3], {}, {}, x[4]}, x[1]);
  };
  const auto backward = [shape](const Operands& x) {
    moc_backward(shape, {x[2], x[3], {}, {}, x[4]}, x[1], x[0], x[1]);
  };
  return {{"moc_forward", OpBound::mixed, operands, forward},
          {"moc_backward", OpBound::mixed, operands, backward, forward}};
}

// The products of the kept channels, where they are made; of a tile of an FFN.
std::vector<BenchOp> moc_products_ops(const MocShape& shape, const Sizes& s, const Device& device) {
  const std::int64_t tokens = ffn_tile(device.backend(), s.tokens);
  if (!moc_products_pay(device, shape, s.hidden, tokens)) return {};
  const BenchOperand rows = {{tokens, s.hidden}}, weight = {{s.ffn, s.hidden}};
  const BenchOperand down = {{s.hidden, s.ffn}}, kept = {{tokens, shape.keep}};
  const BenchOperand index = {{tokens, shape.index_bytes()}, DType::u8};
  const BenchOperandList forward_operands = {
      rows, {{tokens, s.ffn}}, weight, weight, down, kept, kept, index, rows};
  BenchOperandList operands = forward_operands;
  operands.insert(operands.end(), {weight, weight, down, rows});  // their gradients
  const auto forward = [shape](const Operands& x) {
    moc_products_forward(shape, x[0], x[1], {x[2], x[3], x[4]}, {x[5], x[6], {}, {}, x[7]}, x[8]);
  };
  const auto backward = [shape](const Operands& x) {
    moc_products_backward(shape, x[8], x[0], {x[2], x[3], x[4]}, {x[5], x[6], {}, {}, x[7]},
                          {x[9], x[10], x[11]}, x[12]);
  };
  return {{"moc_products_forward", OpBound::gemm, forward_operands, forward},
          {"moc_products_backward", OpBound::gemm, operands, backward, forward}};
}

std::vector<BenchOp> head_ops(const Sizes& s, const BenchTokens& batch) {
  const BenchOperand rows = s.computed({s.tokens, s.hidden});
  const Shape weight = {s.vocabulary, s.hidden};
  const BenchOperandList operands = {
      rows, s.computed(weight), {{s.tokens}}, rows, s.gradient(weight)};
  const Tensor targets = batch.targets.view({s.tokens});
  // Logits of a common size: no underflow in the gradient.
  const auto prepare = [](const Operands& x) { fill(x[0], 0.01f); };
  const auto run = [targets](const Operands& x) {
    HeadLoss head;
    head.hidden = x[0];
    head.weight = x[1];
    head.targets = targets;
    head.losses = x[2];
    head_loss_forward_backward(head, 1.0f, x[3], x[4]);
  };
  return {{"head_loss", OpBound::gemm, operands, run, prepare},
          // The part of it that is no product.
          {"cross_entropy", OpBound::mixed, operands, run, prepare, "cross_entropy"}};
}

std::vector<BenchOp> optimizer_ops(const Sizes& s) {
  const TensorTypes& types = s.types;
  const Shape all = {s.parameters};
  const bool rounded = types.has_master_weights();
  BenchOperandList state = {
      {all, types.weights}, s.gradient(all), {all, types.moments}, {all, types.moments}};
  if (rounded) state.push_back(s.computed(all));
  return {
      {"adamw", OpBound::mixed, state,
       [rounded](const Operands& x) {
         const AdamWHyperparameters hyperparameters = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 100, 1.0f};
         adamw_step(hyperparameters, x[0], x[1], x[2], x[3], rounded ? x[4] : Tensor());
       }},
      {"sum_of_squares",
       OpBound::read,
       {s.gradient(all)},
       [](const Operands& x) { sum_of_squares(x[0]); }},
      {"zero_gradients",
       OpBound::write,
       {s.gradient(all)},
       [](const Operands& x) { fill(x[0], 0.0f); }},
  };
}

std::vector<BenchOp> decoding_ops(const Sizes& s) {
  return {
      {"one_row_product",
       OpBound::read,
       {s.computed({1, s.hidden}), s.computed({s.vocabulary, s.hidden}), {{1, s.vocabulary}}},
       [](const Operands& x) { linear_forward(x[0], x[1], x[2]); }},
  };
}

}  // namespace

double BenchOp::timed(const Operands& x) const {
  if (prepare) prepare(x);
  if (part == nullptr) return chaski::timed(x.front().device(), [&] { run(x); });
  const Profile profile(x.front().device());
  run(x);
  return profile.seconds_of(part);
}

double BenchOp::work_on(Device& counting) const {
  std::vector<Buffer> buffers;
  Operands x;
  for (const BenchOperand& operand : operands) {
    buffers.push_back(counting.allocate(operand.type, operand.shape, MemoryCategory::activations));
    x.push_back(buffers.back().tensor());
  }
  counting.clear_op_counts();
  run(x);
  double work = 0.0;
  for (const OpCount& op : counting.op_counts()) {
    if (part == nullptr || std::strcmp(op.op, part) == 0)
      work += bound == OpBound::gemm ? op.flops : op.bytes;
  }
  return work;
}

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

std::vector<BenchOp> bench_ops(const LlamaConfig& config, const BenchTokens& batch,
                               const TensorTypes& types) {
  const Sizes sizes(config, batch, types);
  const MocShape moc = default_moc_shape(config);
  std::vector<BenchOp> ops;
  for (std::vector<BenchOp>& some : std::vector<std::vector<BenchOp>>{
           embedding_ops(sizes, batch), norm_ops(sizes), attention_ops(sizes), swiglu_ops(sizes),
           moc_ops(moc, sizes), moc_products_ops(moc, sizes, batch.tokens.device()),
           head_ops(sizes, batch), optimizer_ops(sizes), decoding_ops(sizes)}) {
    std::move(some.begin(), some.end(), std::back_inserter(ops));
  }
  return ops;
}

}  // namespace chaski
