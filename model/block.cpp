#include "model/block.h"

#include <fmt/core.h>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "kernels/rotary.h"
#include "kernels/swiglu.h"

namespace chaski {

BlockActivations BlockActivations::narrowed(std::int64_t num_tokens) const {
  const auto narrow = [&](const Tensor& tensor) { return tensor.rows(0, num_tokens); };
  BlockActivations result;
  result.input = narrow(input);
  result.attention_inverse_rms = narrow(attention_inverse_rms);
  result.qkv = narrow(qkv);
  result.attention = narrow(attention);
  const std::int64_t num_heads = log_sum_exp.num_elements() / input.dim(0);
  result.log_sum_exp = log_sum_exp.rows(0, num_tokens * num_heads);
  result.middle = narrow(middle);
  result.ffn_inverse_rms = narrow(ffn_inverse_rms);
  result.gate_up = narrow(gate_up);
  return result;
}

Block::Block(const LlamaConfig& config, std::int64_t layer, ParameterSet& parameters)
    : config_(config), parameters_(&parameters), first_(parameters.size()) {
  const auto add = [&](const char* name, ParameterKind kind, Shape shape,
                       const std::string& group = "") {
    parameters.add(fmt::format("model.layers.{}.{}.weight", layer, name), kind, layer, shape,
                   group.empty() ? group : fmt::format("{}.{}", layer, group));
  };
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t query = config.query_size();
  const std::int64_t kv = config.kv_size();
  const std::int64_t ffn = config.intermediate_size;
  add("input_layernorm", ParameterKind::norm, {hidden});
  add("self_attn.q_proj", ParameterKind::attention, {query, hidden}, "qkv");
  add("self_attn.k_proj", ParameterKind::attention, {kv, hidden}, "qkv");
  add("self_attn.v_proj", ParameterKind::attention, {kv, hidden}, "qkv");
  add("self_attn.o_proj", ParameterKind::attention, {hidden, query});
  add("post_attention_layernorm", ParameterKind::norm, {hidden});
  add("mlp.gate_proj", ParameterKind::ffn, {ffn, hidden}, "gate_up");
  add("mlp.up_proj", ParameterKind::ffn, {ffn, hidden}, "gate_up");
  add("mlp.down_proj", ParameterKind::ffn, {hidden, ffn});
}

void Block::bind() {
  qkv_weight_ = parameters_->fused_compute(first_ + kQuery, 3);
  gate_up_weight_ = parameters_->fused_compute(first_ + kGate, 2);
}

OpKey Block::key(const BlockBatch& batch, const BlockActivations& kept) const {
  OpKey key;
  key.add(batch.rows).add(batch.sequence_length).add(batch.positions);
  for (const Tensor* tensor :
       {&kept.input, &kept.attention_inverse_rms, &kept.qkv, &kept.attention, &kept.log_sum_exp,
        &kept.middle, &kept.ffn_inverse_rms, &kept.gate_up}) {
    key.add(*tensor);
  }
  for (int i = 0; i < kNumParameters; ++i) key.add(gradient(static_cast<Index>(i)));
  return key;
}

AttentionShape Block::attention_shape(std::int64_t rows, std::int64_t sequence_length) const {
  return {rows, sequence_length, config_.num_heads, config_.num_kv_heads, config_.head_dim};
}

void Block::forward(const BlockBatch& batch, const Tensor& rotary, const Tensor& residual,
                    const Tensor& delta, const BlockActivations& kept,
                    const Tensor& out_delta) const {
  const std::int64_t tokens = batch.num_tokens();
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);
  const AttentionShape shape = attention_shape(batch.rows, batch.sequence_length);
  Workspace::Frame frame(parameters_->device());
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});

  if (delta) {
    add_rmsnorm_forward(residual, delta, value(kInputNorm), epsilon, kept.input, normed,
                        kept.attention_inverse_rms);
  } else {
    rmsnorm_forward(kept.input, value(kInputNorm), epsilon, normed, kept.attention_inverse_rms);
  }
  linear_forward(normed, qkv_weight_, kept.qkv);
  rotary_forward(shape, kept.qkv, batch.positions, 0, rotary);
  attention_forward(shape, kept.qkv, batch.positions, kept.attention, kept.log_sum_exp);
  const Tensor attention_delta =
      out_delta ? out_delta : frame.tensor(type(), {tokens, config_.hidden_size});
  linear_forward(kept.attention, value(kAttentionOutput), attention_delta);

  add_rmsnorm_forward(kept.input, attention_delta, value(kFfnNorm), epsilon, kept.middle, normed,
                      kept.ffn_inverse_rms);
  linear_forward(normed, gate_up_weight_, kept.gate_up);
  if (!out_delta) return;
  const Tensor activation = frame.tensor(type(), {tokens, config_.intermediate_size});
  swiglu_forward(kept.gate_up, activation);
  linear_forward(activation, value(kDown), out_delta);
}

void Block::backward(const BlockBatch& batch, const Tensor& rotary, const BlockActivations& kept,
                     const Tensor& dresidual) const {
  ffn_backward(kept, dresidual);
  attention_block_backward(batch, rotary, kept, dresidual);
}

void Block::ffn_backward(const BlockActivations& kept, const Tensor& dresidual) const {
  const std::int64_t tokens = dresidual.dim(0);
  Workspace::Frame frame(parameters_->device());
  {
    // Becomes silu(gate) · up itself once its gradient has been used.
    Workspace::Frame inner(parameters_->device());
    const Tensor activation = inner.tensor(type(), {tokens, config_.intermediate_size});
    linear_backward_input(dresidual, value(kDown), activation);
    swiglu_backward(kept.gate_up, activation, kept.gate_up, activation);
    weight_gradient(dresidual, activation, kDown, 1);
  }
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});
  if (any_trainable(kGate, 2)) {
    rmsnorm_recompute(kept.middle, value(kFfnNorm), kept.ffn_inverse_rms, normed);
    weight_gradient(kept.gate_up, normed, kGate, 2);
  }
  const Tensor& dnormed = normed;  // the operand is used up
  linear_backward_input(kept.gate_up, gate_up_weight_, dnormed);
  rmsnorm_backward(kept.middle, value(kFfnNorm), kept.ffn_inverse_rms, dnormed, dresidual,
                   gradient(kFfnNorm));
}

void Block::attention_block_backward(const BlockBatch& batch, const Tensor& rotary,
                                     const BlockActivations& kept, const Tensor& dresidual) const {
  const std::int64_t tokens = batch.num_tokens();
  const AttentionShape shape = attention_shape(batch.rows, batch.sequence_length);
  Workspace::Frame frame(parameters_->device());
  const Tensor dqkv = frame.tensor(type(), {tokens, config_.qkv_size()});
  {
    Workspace::Frame inner(parameters_->device());
    const Tensor dattention = inner.tensor(type(), {tokens, config_.query_size()});
    linear_backward_input(dresidual, value(kAttentionOutput), dattention);
    weight_gradient(dresidual, kept.attention, kAttentionOutput, 1);
    attention_backward(shape, kept.qkv, batch.positions, kept.attention, kept.log_sum_exp,
                       dattention, dqkv);
  }
  rotary_backward(shape, dqkv, batch.positions, rotary);
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});
  if (any_trainable(kQuery, 3)) {
    rmsnorm_recompute(kept.input, value(kInputNorm), kept.attention_inverse_rms, normed);
    weight_gradient(dqkv, normed, kQuery, 3);
  }
  const Tensor& dnormed = normed;  // the operand is used up
  linear_backward_input(dqkv, qkv_weight_, dnormed);
  rmsnorm_backward(kept.input, value(kInputNorm), kept.attention_inverse_rms, dnormed, dresidual,
                   gradient(kInputNorm));
}

bool Block::any_trainable(Index first, std::int64_t count) const {
  for (std::int64_t i = first; i < first + count; ++i) {
    if (gradient(static_cast<Index>(i))) return true;
  }
  return false;
}

void Block::weight_gradient(const Tensor& dy, const Tensor& x, Index first,
                            std::int64_t count) const {
  if (const Tensor fused = parameters_->fused_gradients(first_ + first, count)) {
    linear_backward_weight(dy, x, fused);
    return;
  }
  std::int64_t column = 0;
  for (std::int64_t i = first; i < first + count; ++i) {
    const Parameter& parameter = (*parameters_)[first_ + i];
    const std::int64_t out = parameter.shape[0];
    if (parameter.gradient) {
      linear_backward_weight(Matrix(dy).columns(column, out), x, parameter.gradient);
    }
    column += out;
  }
}

void Block::decode(std::int64_t past, const Tensor& rotary, const KeyValueCache& cache,
                   const Tensor& residual) const {
  const std::int64_t tokens = residual.dim(0);
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);
  const AttentionShape shape = attention_shape(1, tokens);
  Workspace::Frame frame(parameters_->device());
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});
  const Tensor delta = frame.tensor(type(), {tokens, config_.hidden_size});
  const Tensor qkv = frame.tensor(type(), {tokens, config_.qkv_size()});
  const Tensor attention = frame.tensor(type(), {tokens, config_.query_size()});
  rmsnorm_forward(residual, value(kInputNorm), epsilon, normed, {});
  linear_forward(normed, qkv_weight_, qkv);
  rotary_forward(shape, qkv, {}, past, rotary);
  attention_decode(shape, qkv, past, cache.keys, cache.values, attention);
  linear_forward(attention, value(kAttentionOutput), delta);

  add_rmsnorm_forward(residual, delta, value(kFfnNorm), epsilon, residual, normed, {});
  const Tensor gate_up = frame.tensor(type(), {tokens, 2 * config_.intermediate_size});
  const Tensor activation = frame.tensor(type(), {tokens, config_.intermediate_size});
  linear_forward(normed, gate_up_weight_, gate_up);
  swiglu_forward(gate_up, activation);
  linear_forward(activation, value(kDown), delta);
  add(residual, delta, residual);
}

}  // namespace chaski
