#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/attention/attention.h"
#include "kernels/device/device.h"
#include "kernels/device/op_graph.h"
#include "model/ffn.h"
#include "model/llama_config.h"
#include "model/parameter.h"
#include "model/projection.h"

namespace chaski {

// What a block's backward pass reads of its forward pass; T = tokens of the micro-batch. Everything
// else (normed inputs, what `ffn` leaves out) is recomputed from these.
struct BlockActivations {
  Tensor input;                  // [T, hidden_size]: the residual stream before the block
  Tensor attention_inverse_rms;  // [T]
  Tensor qkv;                    // [T, qkv_size], rotated
  Tensor attention;              // [T, query_size]
  Tensor log_sum_exp;            // [T · num_heads]
  Tensor middle;                 // [T, hidden_size]: the residual stream after attention
  FfnActivations ffn;

  // The first `num_tokens` tokens of every tensor.
  BlockActivations narrowed(std::int64_t num_tokens) const;
};

// The keys and values of one block for decoding, [capacity, kv_size] each.
struct KeyValueCache {
  Tensor keys;
  Tensor values;
};

// Tokens of one sequence that a decoding step adds to it.
struct NewTokens {
  std::int64_t count;  // 1 or more
  std::int64_t past;   // tokens before them, whose keys and values are in the sequence's cache
};

// The tokens' arrangement and where each stands in its document.
struct BlockBatch {
  std::int64_t rows;
  std::int64_t sequence_length;
  Tensor positions;  // [T] i32, or empty

  std::int64_t num_tokens() const { return rows * sequence_length; }
};

// One transformer block: x += Wo · attention(norm(x)); x += ffn(norm(x)).
//
// The residual stream is passed as a sum of two tensors, `residual + delta`, so that adding what a
// block contributes is fused with the norm that reads the sum.
class Block {
 public:
  // Adds the parameters of layer `layer` to the set. `index`: how MoC stores its channels
  // (moc_shape()).
  Block(const LlamaConfig& config, std::int64_t layer, std::optional<MocIndex> index,
        ParameterSet& parameters);
  // To be called once the set's values are allocated.
  void bind();

  // Reads residual + delta (an empty delta: `kept.input` holds the input already); writes the
  // block's contribution after `kept.middle` to `out_delta`, which may be delta. An empty
  // out_delta: only what is kept is computed (recomputation before a backward pass).
  void forward(const BlockBatch& batch, const Tensor& rotary, const Tensor& residual,
               const Tensor& delta, const BlockActivations& kept, const Tensor& out_delta) const;

  // `dresidual` [T, hidden_size] holds the gradient of the block's output and receives that of its
  // input. Adds to the parameters' gradients; overwrites kept.ffn.gate_up.
  void backward(const BlockBatch& batch, const Tensor& rotary, const BlockActivations& kept,
                const Tensor& dresidual) const;

  // What the ops of forward() and backward() depend on, besides their tensors that are not named
  // here.
  OpKey key(const BlockBatch& batch, const BlockActivations& kept) const;

  // Runs the new tokens [n, hidden_size] of all sequences; adds the block's output into `residual`
  // in place. `caches`: of the sequences, in their order.
  void decode(std::span<const NewTokens> sequences, const Tensor& rotary,
              std::span<const KeyValueCache> caches, const FfnDecoding& ffn,
              const Tensor& residual) const;
  const Ffn& ffn() const { return ffn_; }

  std::int64_t first_parameter() const { return first_; }
  std::int64_t num_parameters() const { return kNumParameters; }

 private:
  // Order of the parameters within a block.
  enum Index : std::int64_t {
    kInputNorm,
    kQuery,
    kKey,
    kValue,
    kAttentionOutput,
    kFfnNorm,
    kGate,
    kUp,
    kDown,
    kNumParameters,
  };

  AttentionShape attention_shape(std::int64_t rows, std::int64_t sequence_length) const;
  const Tensor& value(Index index) const { return (*parameters_)[first_ + index].compute; }
  DType type() const { return parameters_->types().compute; }
  const Tensor& gradient(Index index) const { return (*parameters_)[first_ + index].gradient; }
  void attention_block_backward(const BlockBatch& batch, const Tensor& rotary,
                                const BlockActivations& kept, const Tensor& dresidual) const;

  LlamaConfig config_;
  ParameterSet* parameters_;
  std::int64_t first_;
  Projection qkv_;
  Projection attention_output_;
  Ffn ffn_;
};

}  // namespace chaski
