// What a model with Mixture-of-Channels takes of a device's memory, as the device counts it,
// against the sums of the method's description (arXiv 2511.09323).

#include <algorithm>

#include "model/stage.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

struct MemoryCase {
  std::int64_t hidden = 16;
  std::int64_t channels = 63;
  std::int64_t layers = 1;
  std::int64_t heads = 2;
  std::int64_t vocab = 50;
  std::int64_t rows = 2;
  std::int64_t length = 32;
  std::int64_t keep = 0;  // 0: dense
  Recompute recompute = Recompute::none;
  MocIndex index = MocIndex::uint16;

  std::int64_t tokens() const { return rows * length; }
};

struct Measured {
  std::int64_t activations = 0;
  std::int64_t workspace = 0;
  std::int64_t peak = 0;  // of everything
};

class MocMemoryTest : public test::OpTest {
 protected:
  std::int64_t element() const { return in_bf16() ? 2 : 4; }

  // After so many steps on a device of its own. The peak is the sum of the categories', each of
  // which only grows while a stage is made and run.
  Measured measure(const MemoryCase& tested, int steps) {
    const auto device = test::create_device(GetParam().backend, 1);
    LlamaConfig config;
    config.hidden_size = tested.hidden;
    config.intermediate_size = tested.channels;
    config.num_layers = tested.layers;
    config.num_heads = tested.heads;
    config.vocab_size = tested.vocab;
    if (tested.keep > 0) config.moc = MocConfig{tested.keep};
    config.resolve();
    Stage stage(*device, config, stage_range(config, 0, 1),
                {.micro_batch = tested.rows,
                 .sequence_length = tested.length,
                 .recompute = tested.recompute,
                 .moc_index = tested.index,
                 .precision = in_bf16() ? Precision::bf16 : Precision::fp32});
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(tested.tokens()));
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>((i * i + 3 * i) % static_cast<unsigned>(tested.vocab));
    // Charged to the test's own device.
    const Tensor ids = integers(tokens).view({tested.rows, tested.length});
    const MicroBatch batch{ids, ids, {}};
    stage.initialize(3);
    for (int step = 0; step < steps; ++step) {
      stage.forward(0, batch, {}, 1.0f);
      stage.backward(0, batch, {}, nullptr);
    }
    device->synchronize();
    Measured result;
    for (int i = 0; i < kNumMemoryCategories; ++i)
      result.peak += device->memory().peak(static_cast<MemoryCategory>(i));
    result.activations = device->memory().peak(MemoryCategory::activations);
    result.workspace = device->memory().peak(MemoryCategory::workspace);
    EXPECT_EQ(result.activations, device->memory().current(MemoryCategory::activations));
    return result;
  }

  // A model of a GPU takes a thousand times as long as one.
  Measured measure(const MemoryCase& tested) { return measure(tested, on_cpu() ? 2 : 0); }

  // Bytes that a block keeps of a token's FFN: of a layer more, what its other parts keep taken
  // off.
  std::int64_t kept_of_ffn(MemoryCase tested) {
    tested.layers = 2;
    const std::int64_t two = measure(tested).activations;
    tested.layers = 1;
    std::int64_t layer = two - measure(tested).activations;
    // Counts of selected channels, not of tokens.
    if (tested.keep > 0) layer -= 4 * (tested.channels + 1);
    const std::int64_t streams = 6 * tested.hidden;    // input, q, k, v, attention, middle
    const std::int64_t statistics = 2 + tested.heads;  // fp32: two norms' and attention's
    const std::int64_t rest = layer - tested.tokens() * (streams * element() + 4 * statistics);
    EXPECT_EQ(rest % tested.tokens(), 0);
    return rest / tested.tokens();
  }
};

TEST_P(MocMemoryTest, BytesKeptOfATokenAndLayer) {
  // A multiple of 64 tokens, so that no buffer is rounded up.
  const std::int64_t f = 63;
  for (const std::int64_t k : {5, 12}) {
    MemoryCase tested{.channels = f, .keep = k};
    EXPECT_EQ(kept_of_ffn(tested), in_bf16() ? 10 * k : 18 * k) << k;
    tested.index = MocIndex::bitmap;
    EXPECT_EQ(kept_of_ffn(tested), (in_bf16() ? 8 * k : 16 * k) + (f + 1) / 8) << k;
    tested.recompute = Recompute::elementwise;
    EXPECT_EQ(kept_of_ffn(tested), (in_bf16() ? 4 * k : 8 * k) + (f + 1) / 8) << k;
    tested.index = MocIndex::uint16;
    EXPECT_EQ(kept_of_ffn(tested), in_bf16() ? 6 * k : 10 * k) << k;
  }
  EXPECT_EQ(kept_of_ffn({.channels = f}), in_bf16() ? 8 * f : 16 * f);
  EXPECT_EQ(kept_of_ffn({.channels = f, .recompute = Recompute::elementwise}),
            in_bf16() ? 4 * f : 8 * f);
}

// All of it is there before the first step, and no step adds to it.
TEST_P(MocMemoryTest, StepsAddNothingToWhatIsKept) {
  for (const std::int64_t keep : {0, 5}) {
    const MemoryCase tested{.rows = 1, .length = 8, .keep = keep};
    EXPECT_EQ(measure(tested, 2).activations, measure(tested, 0).activations) << keep;
  }
}

// 60M, 130M, 350M and 1B with hidden and FFN sizes, channels kept and vocabulary divided by 32, at
// their full depth. In 16 bits 2nL(4f - 5K) and 4nLK; in fp32 values take twice as much, indices do
// not. On the CPU more than one tile of tokens, and all that two steps take; on a GPU what a stage
// has for its steps, which they add nothing to.
TEST_P(MocMemoryTest, PeaksDifferAsTheMethodSays) {
  struct Scaled {
    const char* name;
    std::int64_t hidden, channels, layers, keep;
  };
  constexpr Scaled kShapes[] = {{"60M", 16, 43, 8, 8},
                                {"130M", 24, 64, 12, 12},
                                {"350M", 32, 86, 24, 16},
                                {"1B", 64, 171, 24, 32}};
  for (const Scaled& shape : kShapes) {
    SCOPED_TRACE(shape.name);
    MemoryCase tested{.hidden = shape.hidden,
                      .channels = shape.channels,
                      .layers = shape.layers,
                      .vocab = 1000,
                      .rows = on_cpu() ? 16 : 2,
                      .length = on_cpu() ? 128 : 32};
    const std::int64_t f = shape.channels;
    const std::int64_t k = shape.keep;
    const std::int64_t places = tested.tokens() * shape.layers;
    const Measured dense = measure(tested);
    tested.keep = k;
    const Measured moc = measure(tested);
    tested.recompute = Recompute::elementwise;
    const Measured recomputed = measure(tested);
    const std::int64_t saved = places * (in_bf16() ? 8 * f - 10 * k : 16 * f - 18 * k);
    const std::int64_t saved_again = places * (in_bf16() ? 4 * k : 8 * k);
    // A block has three buffers less with a dense FFN, one less without what is computed again.
    const std::int64_t rounding = shape.layers * 5 * Device::kAlignment;
    const std::int64_t counts = 4 * shape.layers * (f + 1);
    EXPECT_NEAR(dense.activations - (moc.activations - counts), saved, rounding);
    EXPECT_NEAR(moc.activations - recomputed.activations, saved_again, rounding);
    if (!on_cpu()) continue;
    EXPECT_NEAR(dense.peak - moc.peak, saved, 0.02 * saved);
    EXPECT_NEAR(moc.peak - recomputed.peak, saved_again, 0.02 * saved_again);
  }
}

TEST_P(MocMemoryTest, TheWorkspaceDoesNotGrowWithTheNumberOfLayers) {
  MemoryCase tested{.hidden = 32,
                    .channels = on_cpu() ? 1001 : 86,
                    .rows = on_cpu() ? 9 : 1,
                    .length = on_cpu() ? 128 : 8};
  const int steps = on_cpu() ? 2 : 1;
  for (const std::int64_t keep : {0, 16}) {
    for (const Recompute recompute : {Recompute::none, Recompute::elementwise, Recompute::block}) {
      tested.keep = keep;
      tested.recompute = recompute;
      tested.layers = 1;
      const std::int64_t one = measure(tested, steps).workspace;
      EXPECT_GT(one, 0);
      tested.layers = on_cpu() ? 4 : 2;
      EXPECT_EQ(measure(tested, steps).workspace, one) << keep << " " << name_of(recompute);
    }
  }
  if (!on_cpu()) return;
  // And is what tiles of tokens need: no more for twice as many of them, but for rows of the
  // stream.
  tested.keep = 16;
  tested.rows = 16;
  const std::int64_t once = measure(tested).workspace;
  EXPECT_GT(once, std::int64_t{1} << 21);
  tested.rows = 32;
  const std::int64_t stream = tested.tokens() * tested.hidden * element();
  EXPECT_LE(measure(tested).workspace - once, 6 * stream);
}

CHASKI_ON_ALL_DEVICES(MocMemoryTest);

}  // namespace
}  // namespace chaski
