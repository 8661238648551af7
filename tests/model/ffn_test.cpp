// One FFN, and the norm before it, against the dense formula with a mask, in double.

#include "model/ffn.h"

#include "tests/model/ffn_fixture.h"

namespace chaski {
namespace {

using test::FfnCase;
using test::FfnReference;
using test::FfnRun;
using test::FfnWeights;
using test::Mask;
using test::Reference;
using test::Values;

class FfnTest : public test::FfnTestBase {
 protected:
  // What the stored indices name are the wanted number of the largest gates of each token, but for
  // what rounding may turn over.
  void expect_selection(const FfnCase& tested, const Reference& gates, const Mask& mask) const {
    const Mask wanted = test::select_channels(*tested.config().moc, gates,
                                              static_cast<std::size_t>(tested.channels));
    const double allowed = in_bf16() ? 0.05 : 1e-4;
    ASSERT_EQ(mask.size(), wanted.size());
    for (std::int64_t token = 0; token < tested.tokens; ++token) {
      const std::int64_t begin = token * tested.channels;
      double kept = std::numeric_limits<double>::infinity();
      double dropped = -kept;
      std::int64_t count = 0;
      for (std::int64_t i = begin; i < begin + tested.channels; ++i) {
        count += mask[i];
        if (mask[i] == wanted[i]) continue;
        const double score =
            tested.moc->score == MocScore::gate ? gates[i] : std::abs(test::silu_of(gates[i]));
        mask[i] ? kept = std::min(kept, score) : dropped = std::max(dropped, score);
      }
      ASSERT_EQ(count, tested.config().moc->keep) << "token " << token;
      if (dropped > kept) {
        EXPECT_LE(dropped - kept, allowed) << "token " << token;
      }
    }
  }

  void expect_masked_dense(const FfnCase& tested) {
    SCOPED_TRACE(::testing::Message()
                 << tested.tokens << " tokens, " << tested.channels << " channels, "
                 << name_of(tested.index) << ", recompute " << name_of(tested.recompute));
    const FfnWeights weights = random_weights(tested);
    const Values input = random_rows(tested, 5);
    const Values doutput = random_rows(tested, 6);
    const FfnRun run = this->run(tested, weights, input, doutput);
    const FfnReference reference = reference_of(tested, weights);
    const Reference x = test::widen(input);
    if (tested.moc) expect_selection(tested, reference.gates(x), run.mask);
    const auto expected = reference.backward(x, run.mask, test::widen(doutput));
    const double bound = in_bf16() ? 3e-2 : 2e-6;
    test::expect_close(run.output, reference.output(x, run.mask), bound, "output");
    test::expect_close(run.dinput, expected.input, bound, "dinput");
    test::expect_close(run.gradients.norm, expected.norm, bound, "dnorm");
    test::expect_close(run.gradients.gate, expected.gate, bound, "dgate");
    test::expect_close(run.gradients.up, expected.up, bound, "dup");
    test::expect_close(run.gradients.down, expected.down, bound, "ddown");
  }
};

TEST_P(FfnTest, EqualsTheMaskedDenseFormula) {
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    for (const Recompute recompute : {Recompute::none, Recompute::elementwise, Recompute::block}) {
      const auto expect = [&](FfnCase tested) {
        tested.index = index;
        tested.recompute = recompute;
        expect_masked_dense(tested);
      };
      expect({});
      expect({.hidden = 8, .channels = 19, .tokens = 1, .moc = MocConfig{1}});
      expect({.hidden = 9, .channels = 33, .tokens = 5, .moc = MocConfig{32}});
      expect({.channels = 300, .tokens = 6, .moc = MocConfig{290}});
      // The last group of eight has five channels, one, eight.
      for (const std::int64_t channels : {45, 33, 40}) {
        expect({.channels = channels, .moc = MocConfig{0, MocPattern::two_of_eight}});
      }
      expect({.moc = MocConfig{11, MocPattern::topk, MocScore::silu_magnitude}});
      // Enough tokens, and few enough channels, that products skip the others.
      if (!on_cpu()) continue;
      const auto expect_skipping = [&](const FfnCase& tested) {
        EXPECT_TRUE(skips_channels(tested)) << tested.channels;
        expect(tested);
      };
      expect_skipping({.hidden = 32, .tokens = 45, .moc = MocConfig{1}});
      expect_skipping({.hidden = 32, .channels = 200, .tokens = 32, .moc = MocConfig{20}});
      expect_skipping({.hidden = 27, .channels = 301, .tokens = 70, .moc = MocConfig{30}});
      expect_skipping({.hidden = 72,
                       .channels = 45,
                       .tokens = 77,
                       .moc = MocConfig{0, MocPattern::two_of_eight}});
      expect_skipping({.hidden = 32,
                       .channels = 100,
                       .tokens = 33,
                       .moc = MocConfig{11, MocPattern::topk, MocScore::silu_magnitude}});
    }
  }
  for (const Recompute recompute : {Recompute::none, Recompute::elementwise}) {
    expect_masked_dense({.moc = std::nullopt, .recompute = recompute});
  }
}

TEST_P(FfnTest, EqualsTheMaskedDenseFormulaInSeveralTiles) {
  if (!on_cpu()) GTEST_SKIP() << "tiles of GPUs are too large for a model of one";
  for (const std::int64_t tokens : {1025, 2100}) {
    ASSERT_LT(ffn_tile(Backend::cpu, tokens), tokens);
    FfnCase tested{.hidden = 8, .channels = 70, .tokens = tokens, .moc = MocConfig{5}};
    for (const Recompute recompute : {Recompute::none, Recompute::elementwise}) {
      for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
        tested.recompute = recompute;
        tested.index = index;
        // All products, and only those of what is kept.
        for (const std::int64_t keep : {40, 2}) {
          tested.moc->keep = keep;
          EXPECT_EQ(skips_channels(tested), keep == 2);
          expect_masked_dense(tested);
        }
      }
      expect_masked_dense({.hidden = 6,
                           .channels = 21,
                           .tokens = tokens,
                           .moc = std::nullopt,
                           .recompute = recompute});
    }
  }
}

// Two tokens, three channels, one of them kept: worked out by hand. Normed inputs are (2, 3) and
// (2, -3), gates (1, 1.5, -6.5) and (1, -1.5, 2.5); u = 5 in channel 1 and 1 in channel 2.
TEST_P(FfnTest, OneChannelByHand) {
  const FfnCase tested{.hidden = 2, .channels = 3, .tokens = 2, .moc = MocConfig{1}};
  FfnWeights weights;
  weights.norm = {2, 3};
  weights.gate = {0.5f, 0, 0, 0.5f, -1, -1.5f};
  weights.up = {9, 9, 1, 1, 2, 1};
  weights.down = {7, 1, 2, 7, -1, 3};
  const FfnRun run = this->run(tested, weights, {1, 1, 1, -1}, {1, 0, 0, 1});
  EXPECT_EQ(run.mask, (Mask{false, true, false, false, false, true}));
  constexpr double kSilu1 = 1.2263617142904655;  // SiLU(1.5), SiLU(2.5) and their derivatives
  constexpr double kSilu2 = 2.3103545499468914;
  constexpr double kSlope1 = 1.041294154299143;
  constexpr double kSlope2 = 1.0994011113415267;
  const double bound = in_bf16() ? 1e-2 : 1e-5;
  const double z1 = 5 * kSilu1;
  const double z2 = kSilu2;
  test::expect_close(run.output, {z1, -z1, 2 * z2, 3 * z2}, bound, "output");
  test::expect_close(run.gradients.down, {0, z1, 0, 0, 0, z2}, bound, "ddown");
  // dz = 1 and 3.
  const double du1 = kSilu1;
  const double du2 = 3 * kSilu2;
  const double dg1 = 5 * kSlope1;
  const double dg2 = 3 * kSlope2;
  test::expect_close(run.gradients.up, {0, 0, 2 * du1, 3 * du1, 2 * du2, -3 * du2}, bound, "dup");
  test::expect_close(run.gradients.gate, {0, 0, 2 * dg1, 3 * dg1, 2 * dg2, -3 * dg2}, bound,
                     "dgate");
  // Of the normed input: du · Wup + dg · Wgate; the rows (1, ±1) have a root mean square of 1.
  const double a1 = du1;
  const double b1 = du1 + 0.5 * dg1;
  const double a2 = 2 * du2 - dg2;
  const double b2 = du2 - 1.5 * dg2;
  test::expect_close(run.gradients.norm, {a1 + a2, b1 - b2}, bound, "dnorm");
  // What points along the row is lost in the norm: (a·2, b·3) less its part along (1, ±1).
  const double lost1 = (2 * a1 + 3 * b1) / 2;
  const double lost2 = (2 * a2 - 3 * b2) / 2;
  test::expect_close(run.dinput,
                     {1 + 2 * a1 - lost1, 3 * b1 - lost1, 2 * a2 - lost2, 1 + 3 * b2 + lost2},
                     bound, "dinput");
}

// The selection itself may move, so that no gate may be near its border.
TEST_P(FfnTest, GradientsMatchCentralDifferencesOfTheReference) {
  const FfnCase tested{.hidden = 5, .channels = 16, .tokens = 3, .moc = MocConfig{4}};
  const MocConfig moc = *tested.config().moc;
  const std::size_t channels = 16;
  unsigned seed = 0;
  FfnWeights weights;
  Values input;
  const auto margin = [&] {
    const Reference gates = reference_of(tested, weights).gates(test::widen(input));
    return test::smallest_margin(gates, test::select_channels(moc, gates, channels), channels);
  };
  do {
    ASSERT_LT(++seed, 1000u);
    weights = random_weights(tested, seed);
    input = random_rows(tested, seed + 50);
  } while (margin() < (in_bf16() ? 0.1 : 1e-3));
  const Values doutput = random_rows(tested, 9);
  const FfnRun run = this->run(tested, weights, input, doutput);
  const FfnReference start = reference_of(tested, weights);
  Mask first;
  const auto loss = [&](const FfnReference& layer, const Reference& x) {
    const Mask mask = test::select_channels(moc, layer.gates(x), channels);
    if (first.empty()) first = mask;
    EXPECT_EQ(mask, first) << "a step crossed the border of a selection";
    const Reference y = layer.output(x, mask);
    double sum = 0.0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += (x[i] + y[i]) * doutput[i];
    return sum;
  };
  const auto expect = [&](const Values& actual, const Reference& analytic,
                          Reference FfnReference::*part, const char* what) {
    const Reference expected = test::central_differences(
        [&](const Reference& x) {
          FfnReference moved = start;
          moved.*part = x;
          return loss(moved, test::widen(input));
        },
        start.*part);
    const double bound = in_bf16() ? 4e-2 : 1e-5;
    test::expect_close(actual, expected, bound, what);
    test::expect_close(Values(analytic.begin(), analytic.end()), expected, 1e-6, what);
  };
  const auto analytic = start.backward(test::widen(input), run.mask, test::widen(doutput));
  expect(run.gradients.norm, analytic.norm, &FfnReference::norm, "dnorm");
  expect(run.gradients.gate, analytic.gate, &FfnReference::gate, "dgate");
  expect(run.gradients.up, analytic.up, &FfnReference::up, "dup");
  expect(run.gradients.down, analytic.down, &FfnReference::down, "ddown");
  const Reference dinput = test::central_differences(
      [&](const Reference& x) { return loss(start, x); }, test::widen(input));
  test::expect_close(run.dinput, dinput, in_bf16() ? 4e-2 : 1e-5, "dinput");
  EXPECT_EQ(run.mask, first);
}

CHASKI_ON_ALL_DEVICES(FfnTest);

}  // namespace
}  // namespace chaski
