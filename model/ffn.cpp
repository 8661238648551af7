#include "model/ffn.h"

#include <algorithm>

#include "kernels/device/dispatch.h"
#include "kernels/device/rounding.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/layers/swiglu.h"
#include "kernels/moc/products.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

// Tokens for which products run at their full rate. On a GPU each tile reads and writes the
// gradients of the weights once more, which takes more tokens to be lost in the product's time.
constexpr std::int64_t kTokensOfCpuTile = 1024;
constexpr std::int64_t kTokensOfGpuTile = 8192;
// Rows of a tile are a multiple of this.
constexpr std::int64_t kTileUnit = 16;

constexpr const char* kBackwardPhase = "feed-forward, backward";

Tensor rows_of(const Tensor& tensor, std::int64_t begin, std::int64_t count) {
  return tensor ? tensor.rows(begin, count) : Tensor();
}

MocSelection first_of(const MocSelection& selection, std::int64_t tokens) {
  return {selection.gate.rows(0, tokens), selection.channels.rows(0, tokens)};
}

}  // namespace

FfnActivations FfnActivations::rows(std::int64_t begin, std::int64_t count) const {
  const auto narrow = [&](const Tensor& tensor) { return rows_of(tensor, begin, count); };
  FfnActivations result;
  result.inverse_rms = narrow(inverse_rms);
  result.gate_up = narrow(gate_up);
  result.silu = narrow(silu);
  result.product = narrow(product);
  result.moc = {narrow(moc.gate), narrow(moc.up), narrow(moc.silu), narrow(moc.product),
                narrow(moc.index)};
  return result;
}

void FfnActivations::add_to(OpKey& key) const {
  for (const Tensor* tensor : {&inverse_rms, &gate_up, &silu, &product, &moc.gate, &moc.up,
                               &moc.silu, &moc.product, &moc.index}) {
    key.add(*tensor);
  }
}

std::int64_t ffn_tile(Backend backend, std::int64_t num_tokens) {
  const std::int64_t most = backend == Backend::cpu ? kTokensOfCpuTile : kTokensOfGpuTile;
  const std::int64_t tiles = divide_up(num_tokens, most);
  return std::min(num_tokens, round_up(divide_up(num_tokens, tiles), kTileUnit));
}

MocShape moc_shape(const LlamaConfig& config, std::optional<MocIndex> index) {
  MocShape shape;
  shape.intermediate_size = config.intermediate_size;
  shape.keep = config.moc->keep;
  shape.pattern = config.moc->pattern;
  shape.score = config.moc->score;
  shape.index = index.value_or(MocShape::smaller_index(shape.intermediate_size, shape.keep));
  return shape;
}

Ffn::Ffn(const LlamaConfig& config, std::optional<MocIndex> index, ParameterSet& parameters,
         std::int64_t first)
    : hidden_size_(config.hidden_size),
      intermediate_size_(config.intermediate_size),
      parameters_(&parameters),
      norm_(first),
      gate_up_(parameters, first + 1, 2),
      down_(parameters, first + 3, 1) {
  if (config.moc) moc_ = moc_shape(config, index);
}

void Ffn::bind() {
  gate_up_.bind();
  down_.bind();
}

template <typename Run>
void Ffn::for_each_tile(std::int64_t num_tokens, const Run& run) const {
  Device& device = parameters_->device();
  for_each_part(device, num_tokens, ffn_tile(device.backend(), num_tokens), run);
}

void Ffn::forward(const Tensor& normed, const FfnActivations& kept, const Tensor& out) const {
  for_each_tile(normed.dim(0), [&](std::int64_t begin, std::int64_t count) {
    const Tensor tile = normed.rows(begin, count);
    const FfnActivations kept_of_tile = kept.rows(begin, count);
    moc_ ? forward_selected(tile, kept_of_tile.moc, rows_of(out, begin, count))
         : forward_dense(tile, kept_of_tile, rows_of(out, begin, count));
  });
}

void Ffn::forward_dense(const Tensor& normed, const FfnActivations& kept, const Tensor& out) const {
  const std::int64_t tokens = normed.dim(0);
  Workspace::Frame frame(parameters_->device());
  const Tensor gate_up =
      kept.gate_up ? kept.gate_up : frame.tensor(type(), {tokens, 2 * intermediate_size_});
  gate_up_.forward(normed, gate_up);
  if (!out) return;
  const Tensor product =
      kept.product ? kept.product : frame.tensor(type(), {tokens, intermediate_size_});
  swiglu_forward(gate_up, product, kept.silu);
  down_.forward(product, out);
}

void Ffn::forward_selected(const Tensor& normed, const MocKept& kept, const Tensor& out) const {
  const std::int64_t tokens = normed.dim(0);
  Workspace::Frame frame(parameters_->device());
  const MocKept there = kept.index ? kept : kept_for_now(frame, tokens);
  if (pays_to_skip(tokens)) {
    const Tensor gates = frame.tensor(type(), {tokens, intermediate_size_});
    linear_forward(normed, weights(&Parameter::compute).gate, gates);
    moc_products_forward(*moc_, normed, gates, weights(&Parameter::compute), there, out);
    return;
  }
  const Tensor gate_up = frame.tensor(type(), {tokens, 2 * intermediate_size_});
  const Tensor product = frame.tensor(type(), {tokens, intermediate_size_});
  gate_up_.forward(normed, gate_up);
  moc_forward(*moc_, gate_up, there, product);
  if (out) down_.forward(product, out);
}

bool Ffn::decodes_sparsely(std::int64_t tokens) const {
  return moc_ && moc_decode_pays(*moc_, tokens);
}

void Ffn::decode(const Tensor& normed, const FfnDecoding& decoding, const Tensor& out) const {
  const std::int64_t tokens = normed.dim(0);
  if (!decodes_sparsely(tokens)) return forward(normed, {}, out);
  const MocWeights weight = weights(&Parameter::compute);
  Workspace::Frame frame(parameters_->device());
  const Tensor gates = frame.tensor(type(), {tokens, intermediate_size_});
  linear_forward(normed, weight.gate, gates);
  moc_decode(*moc_, normed, gates, {weight.up, decoding.down_transposed},
             first_of(decoding.selection, tokens), out);
}

FfnDecoding Ffn::allocate_decoding(std::vector<Buffer>& buffers) const {
  if (!decodes_sparsely(1)) return {};
  const auto allocate = [&](DType type, Shape shape, MemoryCategory category) {
    buffers.push_back(parameters_->device().allocate(type, shape, category));
    return buffers.back().tensor();
  };
  FfnDecoding decoding;
  decoding.down_transposed =
      allocate(type(), {intermediate_size_, hidden_size_}, MemoryCategory::weights);
  decoding.selection.gate =
      allocate(type(), {kMaxMocDecodeTokens, moc_->keep}, MemoryCategory::activations);
  decoding.selection.channels =
      allocate(DType::u8, {kMaxMocDecodeTokens, 2 * moc_->keep}, MemoryCategory::activations);
  return decoding;
}

void Ffn::refresh(const FfnDecoding& decoding) const {
  if (decoding.down_transposed)
    transpose(weights(&Parameter::compute).down, decoding.down_transposed);
}

std::int64_t Ffn::bytes_read(const FfnDecoding& decoding, std::int64_t tokens) const {
  const std::int64_t row = hidden_size_ * size_of(type());
  const std::int64_t used = decodes_sparsely(tokens)
                                ? num_selected_channels(*moc_, first_of(decoding.selection, tokens))
                                : intermediate_size_;
  return (intermediate_size_ + 2 * used) * row;
}

bool Ffn::pays_to_skip(std::int64_t tokens) const {
  return moc_products_pay(parameters_->device(), *moc_, hidden_size_, tokens);
}

MocWeights Ffn::weights(Tensor Parameter::*member) const {
  const auto of = [&](std::int64_t i) { return (*parameters_)[norm_ + i].*member; };
  return {of(1), of(2), of(3)};
}

MocKept Ffn::kept_for_now(Workspace::Frame& frame, std::int64_t tokens) const {
  MocKept kept;
  kept.gate = frame.tensor(type(), {tokens, moc_->keep});
  kept.up = frame.tensor(type(), {tokens, moc_->keep});
  kept.index = frame.tensor(DType::u8, {tokens, moc_->index_bytes()});
  return kept;
}

void Ffn::backward(const Tensor& input, const FfnActivations& kept, const Tensor& dresidual) const {
  for_each_tile(dresidual.dim(0), [&](std::int64_t begin, std::int64_t count) {
    const Tensor input_tile = input.rows(begin, count);
    const FfnActivations kept_of_tile = kept.rows(begin, count);
    const Tensor dresidual_tile = dresidual.rows(begin, count);
    moc_&& pays_to_skip(count) ? backward_kept(input_tile, kept_of_tile, dresidual_tile)
                               : backward_all(input_tile, kept_of_tile, dresidual_tile);
  });
}

void Ffn::backward_all(const Tensor& input, const FfnActivations& kept,
                       const Tensor& dresidual) const {
  const std::int64_t tokens = dresidual.dim(0);
  Workspace::Frame frame(parameters_->device(), kBackwardPhase);
  const Tensor dgate_up =
      moc_ ? frame.tensor(type(), {tokens, 2 * intermediate_size_}) : kept.gate_up;
  {
    // Becomes the product itself once its gradient has been used.
    Workspace::Frame inner(parameters_->device());
    const Tensor product = inner.tensor(type(), {tokens, intermediate_size_});
    down_.backward_input(dresidual, product);
    if (moc_) {
      moc_backward(*moc_, kept.moc, product, dgate_up, product);
    } else {
      swiglu_backward(kept.gate_up, product, dgate_up, kept.product ? Tensor() : product,
                      kept.silu);
    }
    down_.backward_weight(dresidual, kept.product ? kept.product : product);
  }
  const Tensor normed = frame.tensor(type(), {tokens, hidden_size_});
  if (gate_up_.is_trainable()) {
    recompute_normed(input, kept, normed);
    gate_up_.backward_weight(dgate_up, normed);
  }
  gate_up_.backward_input(dgate_up, normed);  // the operand is used up
  norm_backward(input, kept, normed, dresidual);
}

void Ffn::backward_kept(const Tensor& input, const FfnActivations& kept,
                        const Tensor& dresidual) const {
  Workspace::Frame frame(parameters_->device(), kBackwardPhase);
  const Tensor normed = frame.tensor(type(), {dresidual.dim(0), hidden_size_});
  if (gate_up_.is_trainable()) recompute_normed(input, kept, normed);
  moc_products_backward(*moc_, dresidual, normed, weights(&Parameter::compute), kept.moc,
                        weights(&Parameter::gradient), normed);
  norm_backward(input, kept, normed, dresidual);
}

void Ffn::recompute_normed(const Tensor& input, const FfnActivations& kept,
                           const Tensor& normed) const {
  rmsnorm_recompute(input, (*parameters_)[norm_].compute, kept.inverse_rms, normed);
}

void Ffn::norm_backward(const Tensor& input, const FfnActivations& kept, const Tensor& dnormed,
                        const Tensor& dresidual) const {
  const Parameter& norm = (*parameters_)[norm_];
  rmsnorm_backward(input, norm.compute, kept.inverse_rms, dnormed, dresidual, norm.gradient);
}

}  // namespace chaski
