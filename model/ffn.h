#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/op_graph.h"
#include "kernels/moc/decode.h"
#include "kernels/moc/moc.h"
#include "kernels/moc/products.h"
#include "model/llama_config.h"
#include "model/parameter.h"
#include "model/projection.h"

namespace chaski {

// What an FFN's backward pass reads of its forward pass; T tokens, I channels. With MoC `moc` is
// used, else the tensors before it.
struct FfnActivations {
  Tensor inverse_rms;  // [T], of the norm before it
  Tensor gate_up;      // [T, 2 · I]; its gradient after the backward pass
  Tensor silu;         // [T, I]; empty: recomputed
  Tensor product;      // [T, I], silu · up; empty: recomputed
  MocKept moc;

  // The tokens [begin, begin + count) of every tensor.
  FfnActivations rows(std::int64_t begin, std::int64_t count) const;
  void add_to(OpKey& key) const;
};

// What decoding holds for an FFN beside the parameters; all empty without MoC.
struct FfnDecoding {
  Tensor down_transposed;  // [I, H], as the weights are
  MocSelection selection;  // of up to kMaxMocDecodeTokens tokens; of the last ones, if sparse
};

// Tokens of a tile, of so many in all; the last tile may have fewer. No more than what large
// products need to run at their full rate.
std::int64_t ffn_tile(Backend backend, std::int64_t num_tokens);

// What MoC keeps of a token in a model with config.moc; no index form: the smaller one.
MocShape moc_shape(const LlamaConfig& config, std::optional<MocIndex> index);

// The FFN of a block: Wdown · (SiLU(Wgate · x) ⊙ Wup · x), of all channels or of those that MoC
// selects for a token. Tokens are taken in tiles; only what is kept for the backward pass outlives
// one. With MoC, products are made of the selected channels only where that is faster, else of all.
class Ffn {
 public:
  // The parameters [first, first + 4) of the set are the weight of the norm before the FFN and the
  // gate, up and down projections. `index`: see moc_shape().
  Ffn(const LlamaConfig& config, std::optional<MocIndex> index, ParameterSet& parameters,
      std::int64_t first);
  // To be called once the set's values are allocated.
  void bind();

  // out [T, hidden_size] from normed [T, hidden_size]. What is empty in `kept` is not kept. An
  // empty out: only what is kept is computed.
  void forward(const Tensor& normed, const FfnActivations& kept, const Tensor& out) const;

  // The same for the tokens of a decoding step: of few, with MoC, only the weights of the selected
  // channels are read.
  void decode(const Tensor& normed, const FfnDecoding& decoding, const Tensor& out) const;
  // Empty tensors without MoC.
  FfnDecoding allocate_decoding(std::vector<Buffer>& buffers) const;
  // After each change of the values.
  void refresh(const FfnDecoding& decoding) const;
  // Bytes of weights that decode() read for the last so many tokens. Waits for the device.
  std::int64_t bytes_read(const FfnDecoding& decoding, std::int64_t tokens) const;

  // Through the FFN and the norm before it, whose input [T, hidden_size] is the residual stream.
  // `dresidual` [T, hidden_size] holds the gradient of the block's output; receives that of
  // `input`. Adds to the parameters' gradients; overwrites kept.gate_up.
  void backward(const Tensor& input, const FfnActivations& kept, const Tensor& dresidual) const;

 private:
  DType type() const { return parameters_->types().compute; }
  template <typename Run>
  void for_each_tile(std::int64_t num_tokens, const Run& run) const;
  void forward_dense(const Tensor& normed, const FfnActivations& kept, const Tensor& out) const;
  void forward_selected(const Tensor& normed, const MocKept& kept, const Tensor& out) const;
  MocKept kept_for_now(Workspace::Frame& frame, std::int64_t tokens) const;
  // Whether so many tokens are computed faster without the channels that they do not use.
  bool pays_to_skip(std::int64_t tokens) const;
  bool decodes_sparsely(std::int64_t tokens) const;
  MocWeights weights(Tensor Parameter::*member) const;
  // With the products of all channels, or of the kept ones only.
  void backward_all(const Tensor& input, const FfnActivations& kept, const Tensor& dresidual) const;
  void backward_kept(const Tensor& input, const FfnActivations& kept,
                     const Tensor& dresidual) const;
  void recompute_normed(const Tensor& input, const FfnActivations& kept,
                        const Tensor& normed) const;
  void norm_backward(const Tensor& input, const FfnActivations& kept, const Tensor& dnormed,
                     const Tensor& dresidual) const;

  std::int64_t hidden_size_;
  std::int64_t intermediate_size_;
  std::optional<MocShape> moc_;
  ParameterSet* parameters_;
  std::int64_t norm_;
  Projection gate_up_;
  Projection down_;
};

}  // namespace chaski
