#include "model/block.h"

#include <fmt/core.h>

#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/attention/rotary.h"

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
  result.ffn = ffn.rows(0, num_tokens);
  return result;
}

Block::Block(const LlamaConfig& config, std::int64_t layer, std::optional<MocIndex> index,
             ParameterSet& parameters)
    : config_(config),
      parameters_(&parameters),
      first_(parameters.size()),
      qkv_(parameters, first_ + kQuery, 3),
      attention_output_(parameters, first_ + kAttentionOutput, 1),
      ffn_(config, index, parameters, first_ + kFfnNorm) {
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
  qkv_.bind();
  attention_output_.bind();
  ffn_.bind();
}

OpKey Block::key(const BlockBatch& batch, const BlockActivations& kept) const {
  OpKey key;
  key.add(batch.rows).add(batch.sequence_length).add(batch.positions);
  for (const Tensor* tensor : {&kept.input, &kept.attention_inverse_rms, &kept.qkv, &kept.attention,
                               &kept.log_sum_exp, &kept.middle}) {
    key.add(*tensor);
  }
  kept.ffn.add_to(key);
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
  Workspace::Frame frame(parameters_->device(), out_delta ? nullptr : "blocks, forward again");
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});

  if (delta) {
    add_rmsnorm_forward(residual, delta, value(kInputNorm), epsilon, kept.input, normed,
                        kept.attention_inverse_rms);
  } else {
    rmsnorm_forward(kept.input, value(kInputNorm), epsilon, normed, kept.attention_inverse_rms);
  }
  qkv_.forward(normed, kept.qkv);
  rotary_forward(shape, kept.qkv, batch.positions, 0, rotary);
  attention_forward(shape, kept.qkv, batch.positions, kept.attention, kept.log_sum_exp);
  const Tensor attention_delta =
      out_delta ? out_delta : frame.tensor(type(), {tokens, config_.hidden_size});
  attention_output_.forward(kept.attention, attention_delta);

  add_rmsnorm_forward(kept.input, attention_delta, value(kFfnNorm), epsilon, kept.middle, normed,
                      kept.ffn.inverse_rms);
  ffn_.forward(normed, kept.ffn, out_delta);
}

void Block::backward(const BlockBatch& batch, const Tensor& rotary, const BlockActivations& kept,
                     const Tensor& dresidual) const {
  ffn_.backward(kept.middle, kept.ffn, dresidual);
  attention_block_backward(batch, rotary, kept, dresidual);
}

void Block::attention_block_backward(const BlockBatch& batch, const Tensor& rotary,
                                     const BlockActivations& kept, const Tensor& dresidual) const {
  const std::int64_t tokens = batch.num_tokens();
  const AttentionShape shape = attention_shape(batch.rows, batch.sequence_length);
  Workspace::Frame frame(parameters_->device(), "attention, backward");
  const Tensor dqkv = frame.tensor(type(), {tokens, config_.qkv_size()});
  {
    Workspace::Frame inner(parameters_->device());
    const Tensor dattention = inner.tensor(type(), {tokens, config_.query_size()});
    attention_output_.backward_input(dresidual, dattention);
    attention_output_.backward_weight(dresidual, kept.attention);
    attention_backward(shape, kept.qkv, batch.positions, kept.attention, kept.log_sum_exp,
                       dattention, dqkv);
  }
  rotary_backward(shape, dqkv, batch.positions, rotary);
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});
  if (qkv_.is_trainable()) {
    rmsnorm_recompute(kept.input, value(kInputNorm), kept.attention_inverse_rms, normed);
    qkv_.backward_weight(dqkv, normed);
  }
  const Tensor& dnormed = normed;  // the operand is used up
  qkv_.backward_input(dqkv, dnormed);
  rmsnorm_backward(kept.input, value(kInputNorm), kept.attention_inverse_rms, dnormed, dresidual,
                   gradient(kInputNorm));
}

void Block::decode(std::span<const NewTokens> sequences, const Tensor& rotary,
                   std::span<const KeyValueCache> caches, const FfnDecoding& ffn,
                   const Tensor& residual) const {
  const std::int64_t tokens = residual.dim(0);
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);
  Workspace::Frame frame(parameters_->device());
  const Tensor normed = frame.tensor(type(), {tokens, config_.hidden_size});
  const Tensor delta = frame.tensor(type(), {tokens, config_.hidden_size});
  const Tensor qkv = frame.tensor(type(), {tokens, config_.qkv_size()});
  const Tensor attention = frame.tensor(type(), {tokens, config_.query_size()});
  rmsnorm_forward(residual, value(kInputNorm), epsilon, normed, {});
  qkv_.forward(normed, qkv);
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto [count, past] = sequences[i];
    const AttentionShape shape = attention_shape(1, count);
    const Tensor mine = qkv.rows(begin, count);
    rotary_forward(shape, mine, {}, past, rotary);
    attention_decode(shape, mine, past, caches[i].keys, caches[i].values,
                     attention.rows(begin, count));
    begin += count;
  }
  attention_output_.forward(attention, delta);

  add_rmsnorm_forward(residual, delta, value(kFfnNorm), epsilon, residual, normed, {});
  ffn_.decode(normed, ffn, delta);
  add(residual, delta, residual);
}

}  // namespace chaski
