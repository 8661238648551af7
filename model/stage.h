#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/op_graph.h"
#include "kernels/loss/loss_totals.h"
#include "model/block.h"
#include "model/llama_config.h"
#include "model/parameter.h"
#include "model/precision.h"

namespace chaski {

// What a stage does not keep of a micro-batch between its forward and its backward pass.
enum class Recompute {
  none,         // every operand of the backward pass is kept, but for normed inputs
  elementwise,  // SiLU(gate) and its product with the up projection are computed again
  block,        // only the input of each block is kept; its forward pass runs again
};
const char* name_of(Recompute recompute);

// The part of the model that a stage holds: blocks [first_layer, first_layer + num_layers), with
// the embedding before them and the final norm and the head after them where set.
struct StageRange {
  std::int64_t first_layer = 0;
  std::int64_t num_layers = 0;
  bool has_embedding = true;
  bool has_head = true;
};
// Splits the layers evenly; the first stages take one more when they do not divide.
// Throws std::invalid_argument when there are more stages than layers.
StageRange stage_range(const LlamaConfig& config, std::int64_t stage, std::int64_t num_stages);

struct StageOptions {
  std::int64_t micro_batch = 1;  // rows
  std::int64_t sequence_length = 1;
  Recompute recompute = Recompute::elementwise;
  std::optional<MocIndex> moc_index = std::nullopt;  // of MoC's channels; none: the smaller form
  std::int64_t micro_batches_in_flight = 1;  // forward passes whose backward pass is outstanding
  bool training = true;                      // false: no gradients, nothing kept
  Precision precision = Precision::fp32;
};

// The token tensors of a micro-batch; [rows, sequence_length] i32, rows and length at most those of
// the options. Every stage gets all of them (they are small); the first reads tokens, the last
// targets, all positions.
struct MicroBatch {
  Tensor tokens;
  Tensor targets;    // kIgnoredTarget: no loss
  Tensor positions;  // empty: 0 … sequence_length - 1 and attention to the whole sequence before
};

// Told during a backward pass that gradients are complete, so that their reduction can start.
class GradientListener {
 public:
  virtual ~GradientListener() = default;
  // Parameters [first, first + count) of the stage's set will not change any more in this step.
  virtual void gradients_ready(std::int64_t first, std::int64_t count) = 0;
};

// How the tokens of some forward passes used the channels of one layer's FFN, with MoC.
struct ChannelUse {
  std::vector<std::uint32_t> counts;  // [intermediate_size]: of tokens that selected the channel
  std::uint64_t positive = 0;         // of kept gates above zero
};

// A contiguous range of blocks with a hand-written forward and backward pass.
class Stage {
 public:
  Stage(Device& device, const LlamaConfig& config, const StageRange& range,
        const StageOptions& options);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  const LlamaConfig& config() const { return config_; }
  const StageRange& range() const { return range_; }
  const StageOptions& options() const { return options_; }
  // Room for so many micro-batches from now on; between steps only. What was kept is lost.
  void set_micro_batches_in_flight(std::int64_t count);
  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }

  // Weights from N(0, initializer_range²), norms 1; each parameter from its own random stream, so
  // that the values do not depend on how layers are split into stages.
  void initialize(std::uint64_t seed);

  // Runs micro-batch `stash` (0 … micro_batches_in_flight - 1). `input` [T, hidden_size] is the
  // output of the stage before (ignored with an embedding; copied). Returns the output [T,
  // hidden_size], valid until the next forward pass of that stash; empty with a head, where the
  // loss and its gradient are computed at once: gradients are those of gradient_scale · Σ loss.
  Tensor forward(std::int64_t stash, const MicroBatch& batch, const Tensor& input,
                 float gradient_scale);
  // With a head: of all forward passes and evaluations since this was last asked; zeros without.
  // Waits for the device.
  LossTotals take_loss_totals();

  // With MoC: by layer, of all forward passes (not evaluations) since this was last asked, which
  // must have had less than 2^32 / keep tokens; else empty. Waits for the device.
  std::vector<ChannelUse> take_channel_use();

  // `output_gradient` [T, hidden_size] (ignored with a head). Adds to the parameters' gradients;
  // returns the gradient of the input (empty with an embedding), valid until the next backward
  // pass. `listener` (may be null) is told of each finished block; give it on the last micro-batch
  // of a step only.
  Tensor backward(std::int64_t stash, const MicroBatch& batch, const Tensor& output_gradient,
                  GradientListener* listener);

  // A forward pass that keeps nothing and touches no gradient. With a head: the losses are in
  // token_losses() and the totals, and the result is empty.
  Tensor evaluate(const MicroBatch& batch, const Tensor& input);
  // Of what a layer keeps of a token's FFN from its forward for its backward pass, norm scales
  // apart: bytes.
  std::int64_t ffn_bytes_per_token() const;
  // [T] losses of the last forward pass or evaluation.
  const Tensor& token_losses() const { return losses_; }

  // For decoding (model/decoder.h): the parts in order.
  const std::vector<Block>& blocks() const { return blocks_; }
  const Tensor& rotary() const { return rotary_.tensor(); }
  const Tensor& embedding_weight() const;
  const Tensor& final_norm_weight() const;
  const Tensor& head_weight() const;

 private:
  struct Stash {
    std::vector<BlockActivations> blocks;
    Tensor positions;              // [tokens] i32
    Tensor targets;                // with a head: [tokens] i32
    Tensor output;                 // without a head
    Tensor residual_gradient;      // with a head: the gradient of the last block's output
    std::vector<OpGraph> forward;  // by block
    std::vector<OpGraph> backward;
    OpGraph head;
  };

  void add_parameters();
  void count_channels(std::int64_t layer, const MocKept& kept) const;
  void allocate_activations();
  Tensor allocate_activation(const char* purpose, Shape shape) {
    return allocate_activation(purpose, type(), shape);
  }
  Tensor allocate_activation(const char* purpose, DType type, Shape shape);
  void reserve_workspace();
  // Every kind of pass with one full micro-batch, whose content does not matter: on a counting
  // device.
  void run_once();
  BlockActivations allocate_block();
  FfnActivations allocate_ffn();
  // With the positions at the stash's own place, so that each step's ops have the same operands.
  BlockBatch block_batch(const MicroBatch& batch, const Stash& stash) const;
  Tensor run_forward(Stash& stash, const MicroBatch& batch, const Tensor& input,
                     float gradient_scale, bool counts_channels);
  // The blocks' forward pass; `delta` receives what the last one adds to its `middle`.
  void run_blocks(Stash& stash, const MicroBatch& batch, const Tensor& input, const Tensor& delta,
                  bool counts_channels);
  // Final norm, head, loss and, where `gradient_scale` is not zero, their backward pass.
  void run_head(Stash& stash, const MicroBatch& batch, const Tensor& middle, const Tensor& delta,
                float gradient_scale);
  void queue_head(const Tensor& targets, const Tensor& middle, const Tensor& delta,
                  const Tensor& dresidual, float gradient_scale);
  const Tensor& head_gradient() const;
  DType type() const { return parameters_.types().compute; }

  Device& device_;
  LlamaConfig config_;
  StageRange range_;
  StageOptions options_;
  ParameterSet parameters_;
  std::vector<Block> blocks_;
  std::int64_t embedding_ = -1;  // indices into parameters_
  std::int64_t final_norm_ = -1;
  std::int64_t head_ = -1;  // of the embedding when tied
  Buffer rotary_;
  std::vector<Buffer> activation_buffers_;
  std::vector<Stash> stashes_;
  Stash evaluation_;  // keeps nothing: its tensors are those of the first
  Tensor input_gradient_;
  Tensor losses_;
  Tensor loss_totals_;  // [2] f64
  // [num_layers, intermediate_size + 2] i32, with MoC: moc_count()'s counts, then its `positive`.
  Tensor channel_counts_;
};

}  // namespace chaski
