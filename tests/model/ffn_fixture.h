#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/layers/rmsnorm.h"
#include "kernels/moc/products.h"
#include "model/ffn.h"
#include "model/stage.h"
#include "tests/model/ffn_reference.h"

namespace chaski::test {

// The weights of one FFN and the norm before it.
struct FfnWeights {
  Values norm;  // [hidden]
  Values gate;  // [channels, hidden]
  Values up;    // [channels, hidden]
  Values down;  // [hidden, channels]
};

// What a forward and a backward pass of an FFN gave.
struct FfnRun {
  Values output;
  FfnWeights gradients;
  Values dinput;  // of input + output
  Mask mask;      // from the stored indices; with a dense FFN all
};

struct FfnCase {
  std::int64_t hidden = 24;
  std::int64_t channels = 40;
  std::int64_t tokens = 7;
  std::optional<MocConfig> moc = MocConfig{9};
  MocIndex index = MocIndex::uint16;
  Recompute recompute = Recompute::none;

  LlamaConfig config() const {
    LlamaConfig result;
    result.hidden_size = hidden;
    result.intermediate_size = channels;
    result.num_layers = 1;
    result.num_heads = 1;
    result.head_dim = 2;
    result.vocab_size = 3;
    result.moc = moc;
    result.resolve();
    return result;
  }
};

// Channels that stored indices name: ascending 16-bit numbers, or a bit for each channel.
inline Mask mask_of(const std::vector<std::uint8_t>& bytes, MocIndex form, std::int64_t tokens,
                    std::int64_t channels) {
  const std::int64_t of_token = static_cast<std::int64_t>(bytes.size()) / tokens;
  Mask mask(static_cast<std::size_t>(tokens * channels), false);
  for (std::int64_t token = 0; token < tokens; ++token) {
    const std::uint8_t* mine = bytes.data() + token * of_token;
    if (form == MocIndex::bitmap) {
      for (std::int64_t i = 0; i < channels; ++i)
        mask[static_cast<std::size_t>(token * channels + i)] = (mine[i / 8] >> (i % 8) & 1) != 0;
      continue;
    }
    for (std::int64_t k = 0; k < of_token / 2; ++k)
      mask.at(static_cast<std::size_t>(token * channels + mine[2 * k] + 256 * mine[2 * k + 1])) =
          true;
  }
  return mask;
}

class FfnTestBase : public OpTest {
 protected:
  // Whether the first tile computes with the kept channels alone.
  bool skips_channels(const FfnCase& tested) {
    const std::int64_t tile = ffn_tile(on_cpu() ? Backend::cpu : Backend::cuda, tested.tokens);
    return moc_products_pay(device(), moc_shape(tested.config(), tested.index), tested.hidden,
                            tile);
  }

  // Random weights as the backend holds them, so that a reference can start from the same numbers.
  FfnWeights random_weights(const FfnCase& tested, unsigned seed = 1) const {
    const std::int64_t size = tested.hidden * tested.channels;
    const float limit = 1.7f / std::sqrt(static_cast<float>(tested.hidden));
    FfnWeights weights;
    weights.norm = random_values(tested.hidden, seed);
    for (float& value : weights.norm) value = 1.0f + 0.3f * value;
    weights.norm = as_held(weights.norm);
    weights.gate = as_held(random_values(size, seed + 100, limit));
    weights.up = as_held(random_values(size, seed + 200, limit));
    weights.down = as_held(random_values(size, seed + 300, limit));
    return weights;
  }
  Values random_rows(const FfnCase& tested, unsigned seed) const {
    return as_held(random_values(tested.tokens * tested.hidden, seed, 2.0f));
  }
  static FfnReference reference_of(const FfnCase& tested, const FfnWeights& weights) {
    return {tested.config().rms_norm_eps, widen(weights.norm), widen(weights.gate),
            widen(weights.up), widen(weights.down)};
  }

  // Gradients start from zero, and everything kept from numbers that are not any.
  FfnRun run(const FfnCase& tested, const FfnWeights& weights, const Values& input,
             const Values& doutput) {
    const LlamaConfig config = tested.config();
    ParameterSet parameters(device(), types_of(in_bf16() ? Precision::bf16 : Precision::fp32));
    parameters.add("norm", ParameterKind::norm, 0, {tested.hidden});
    parameters.add("gate", ParameterKind::ffn, 0, {tested.channels, tested.hidden}, "gate_up");
    parameters.add("up", ParameterKind::ffn, 0, {tested.channels, tested.hidden}, "gate_up");
    parameters.add("down", ParameterKind::ffn, 0, {tested.hidden, tested.channels});
    Ffn ffn(config, tested.index, parameters, 0);
    parameters.allocate();
    ffn.bind();
    parameters.allocate_gradients([](const Parameter&) { return true; });
    const Values* all[] = {&weights.norm, &weights.gate, &weights.up, &weights.down};
    for (std::int64_t i = 0; i < 4; ++i) copy_from_host(all[i]->data(), parameters[i].value);
    parameters.refresh_compute();

    const std::int64_t tokens = tested.tokens;
    const FfnActivations kept = allocate_kept(tested);
    const Tensor rows = activations({tokens, tested.hidden}, input);
    const Tensor normed = poisoned_activations({tokens, tested.hidden});
    const Tensor out = poisoned_activations({tokens, tested.hidden});
    const Tensor dresidual = activations({tokens, tested.hidden}, doutput);
    rmsnorm_forward(rows, parameters[0].compute, static_cast<float>(config.rms_norm_eps), normed,
                    kept.inverse_rms);
    ffn.forward(normed, kept, out);
    FfnRun result;
    result.output = values(out);
    if (tested.recompute == Recompute::block) ffn.forward(normed, kept, {});
    ffn.backward(rows, kept, dresidual);
    result.dinput = values(dresidual);
    result.gradients = {values(parameters[0].gradient), values(parameters[1].gradient),
                        values(parameters[2].gradient), values(parameters[3].gradient)};
    result.mask = stored_mask(tested, kept);
    return result;
  }

  static void expect_same_bits(const FfnRun& actual, const FfnRun& expected,
                               const std::string& what) {
    EXPECT_TRUE(same_bits(actual.output, expected.output)) << "output, " << what;
    EXPECT_TRUE(same_bits(actual.dinput, expected.dinput)) << "dinput, " << what;
    EXPECT_TRUE(same_bits(actual.gradients.norm, expected.gradients.norm)) << "dnorm, " << what;
    EXPECT_TRUE(same_bits(actual.gradients.gate, expected.gradients.gate)) << "dgate, " << what;
    EXPECT_TRUE(same_bits(actual.gradients.up, expected.gradients.up)) << "dup, " << what;
    EXPECT_TRUE(same_bits(actual.gradients.down, expected.gradients.down)) << "ddown, " << what;
    EXPECT_EQ(actual.mask, expected.mask) << what;
  }

 private:
  FfnActivations allocate_kept(const FfnCase& tested) {
    const bool keeps_all = tested.recompute == Recompute::none;
    FfnActivations kept;
    kept.inverse_rms = tensor({tested.tokens}, Values(static_cast<std::size_t>(tested.tokens)));
    if (!tested.moc) {
      kept.gate_up = poisoned_activations({tested.tokens, 2 * tested.channels});
      if (!keeps_all) return kept;
      kept.silu = poisoned_activations({tested.tokens, tested.channels});
      kept.product = poisoned_activations({tested.tokens, tested.channels});
      return kept;
    }
    const std::int64_t keep = tested.config().moc->keep;
    const std::int64_t bytes =
        tested.index == MocIndex::uint16 ? 2 * keep : (tested.channels + 7) / 8;
    kept.moc.gate = poisoned_activations({tested.tokens, keep});
    kept.moc.up = poisoned_activations({tested.tokens, keep});
    kept.moc.index = zeros({tested.tokens, bytes}, DType::u8);
    const std::vector<std::uint8_t> poison(static_cast<std::size_t>(tested.tokens * bytes), 0xff);
    copy_from_host(poison.data(), kept.moc.index);
    if (!keeps_all) return kept;
    kept.moc.silu = poisoned_activations({tested.tokens, keep});
    kept.moc.product = poisoned_activations({tested.tokens, keep});
    return kept;
  }

  static Mask stored_mask(const FfnCase& tested, const FfnActivations& kept) {
    if (!tested.moc) return Mask(static_cast<std::size_t>(tested.tokens * tested.channels), true);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(kept.moc.index.num_elements()));
    copy_to_host(kept.moc.index, bytes.data());
    return mask_of(bytes, tested.index, tested.tokens, tested.channels);
  }
};

}  // namespace chaski::test
