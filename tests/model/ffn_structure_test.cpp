// What holds of an FFN with Mixture-of-Channels whatever its numbers are.

#include <numeric>

#include "tests/model/ffn_fixture.h"

namespace chaski {
namespace {

using test::FfnCase;
using test::FfnRun;
using test::FfnWeights;
using test::Mask;
using test::Reference;
using test::Values;

constexpr MocIndex kIndexForms[] = {MocIndex::uint16, MocIndex::bitmap};

class FfnStructureTest : public test::FfnTestBase {
 protected:
  // Channels that no token selected.
  static std::vector<std::int64_t> dead_channels(const FfnCase& tested, const Mask& mask) {
    std::vector<std::int64_t> dead;
    for (std::int64_t i = 0; i < tested.channels; ++i) {
      bool used = false;
      for (std::int64_t token = 0; token < tested.tokens; ++token)
        used = used || mask[token * tested.channels + i];
      if (!used) dead.push_back(i);
    }
    return dead;
  }
};

TEST_P(FfnStructureTest, WhatIsRecomputedHasTheSameBits) {
  for (const std::optional<MocConfig>& moc :
       {std::optional<MocConfig>(), std::optional(MocConfig{9}),
        std::optional(MocConfig{0, MocPattern::two_of_eight})}) {
    for (const MocIndex index : kIndexForms) {
      FfnCase tested{.channels = on_cpu() ? 200 : 40,
                     .tokens = on_cpu() ? 1100 : 9,
                     .moc = moc,
                     .index = index};
      if (moc && moc->pattern == MocPattern::topk) {
        EXPECT_EQ(skips_channels(tested), on_cpu());
      }
      const FfnWeights weights = random_weights(tested);
      const Values input = random_rows(tested, 1);
      const Values doutput = random_rows(tested, 2);
      const FfnRun expected = run(tested, weights, input, doutput);
      for (const Recompute recompute : {Recompute::elementwise, Recompute::block}) {
        tested.recompute = recompute;
        expect_same_bits(run(tested, weights, input, doutput), expected, name_of(recompute));
      }
    }
  }
}

TEST_P(FfnStructureTest, HowIndicesAreStoredChangesNoBit) {
  FfnCase tested{.tokens = 11};
  const FfnWeights weights = random_weights(tested);
  const Values input = random_rows(tested, 1);
  const Values doutput = random_rows(tested, 2);
  const FfnRun expected = run(tested, weights, input, doutput);
  tested.index = MocIndex::bitmap;
  expect_same_bits(run(tested, weights, input, doutput), expected, "bitmap");
}

TEST_P(FfnStructureTest, AllChannelsAreTheDenseFfn) {
  for (const std::int64_t tokens : {7, 1100}) {
    if (!on_cpu() && tokens > 7) continue;
    FfnCase tested{.tokens = tokens, .moc = std::nullopt};
    const FfnWeights weights = random_weights(tested);
    const Values input = random_rows(tested, 1);
    const Values doutput = random_rows(tested, 2);
    for (const Recompute recompute : {Recompute::none, Recompute::elementwise}) {
      tested.moc = std::nullopt;
      tested.recompute = recompute;
      const FfnRun expected = run(tested, weights, input, doutput);
      tested.moc = MocConfig{tested.channels};
      for (const MocIndex index : kIndexForms) {
        tested.index = index;
        const FfnRun actual = run(tested, weights, input, doutput);
        if (!in_bf16()) {
          expect_same_bits(actual, expected, name_of(index));
          continue;
        }
        EXPECT_TRUE(test::same_bits(actual.output, expected.output));
        test::expect_close(actual.dinput, test::widen(expected.dinput), 1e-2, "dinput");
        test::expect_close(actual.gradients.gate, test::widen(expected.gradients.gate), 1e-2,
                           "dgate");
      }
    }
  }
}

// What dropped channels would have contributed does not matter, however large.
TEST_P(FfnStructureTest, NothingOutsideTheKeptSetContributes) {
  const std::vector<MocConfig> configs = {MocConfig{1}, MocConfig{5},
                                          MocConfig{0, MocPattern::two_of_eight}};
  for (const MocConfig& moc : configs) {
    for (const std::int64_t tokens : {1, 2, 32}) {
      const FfnCase tested{.channels = tokens == 32 ? 800 : 40, .tokens = tokens, .moc = moc};
      if (tokens == 32 && (!on_cpu() || moc.pattern != MocPattern::topk)) continue;
      FfnWeights weights = random_weights(tested);
      const Values input = random_rows(tested, 3);
      const Values doutput = random_rows(tested, 4);
      const FfnRun expected = run(tested, weights, input, doutput);
      const auto dead = dead_channels(tested, expected.mask);
      ASSERT_GE(dead.size(), 10u);
      for (const std::int64_t channel : dead) {
        for (std::int64_t i = 0; i < tested.hidden; ++i) {
          weights.up[channel * tested.hidden + i] = 1024.0f;
          weights.down[i * tested.channels + channel] = -512.0f;
        }
      }
      expect_same_bits(run(tested, weights, input, doutput), expected, "dropped channels changed");
    }
  }
}

TEST_P(FfnStructureTest, ChannelsThatNoTokenSelectedHaveNoGradient) {
  for (const FfnCase& tested :
       {FfnCase{.tokens = 4, .moc = MocConfig{4}},
        FfnCase{.tokens = 4, .moc = MocConfig{4}, .index = MocIndex::bitmap},
        FfnCase{.hidden = 16, .channels = 400, .tokens = 40, .moc = MocConfig{4}}}) {
    EXPECT_EQ(skips_channels(tested), on_cpu() && tested.tokens == 40);
    const FfnRun result =
        run(tested, random_weights(tested), random_rows(tested, 3), random_rows(tested, 4));
    const auto dead = dead_channels(tested, result.mask);
    ASSERT_GE(dead.size(), 10u);
    for (std::int64_t channel = 0; channel < tested.channels; ++channel) {
      const bool is_dead = std::find(dead.begin(), dead.end(), channel) != dead.end();
      double gate = 0.0;
      double up = 0.0;
      double down = 0.0;
      for (std::int64_t i = 0; i < tested.hidden; ++i) {
        gate = std::max<double>(gate, std::abs(result.gradients.gate[channel * tested.hidden + i]));
        up = std::max<double>(up, std::abs(result.gradients.up[channel * tested.hidden + i]));
        down =
            std::max<double>(down, std::abs(result.gradients.down[i * tested.channels + channel]));
      }
      EXPECT_EQ(gate == 0.0, is_dead) << channel;
      EXPECT_EQ(up == 0.0, is_dead) << channel;
      EXPECT_EQ(down == 0.0, is_dead) << channel;
    }
  }
}

TEST_P(FfnStructureTest, PermutedChannelsGiveTheSame) {
  for (const MocIndex index : kIndexForms) {
    const FfnCase tested{.channels = 61, .moc = MocConfig{13}, .index = index};
    const FfnWeights weights = random_weights(tested);
    const Values input = random_rows(tested, 3);
    const Values doutput = random_rows(tested, 4);
    const FfnRun before = run(tested, weights, input, doutput);
    std::vector<std::int64_t> from(static_cast<std::size_t>(tested.channels));
    std::iota(from.begin(), from.end(), 0);
    std::shuffle(from.begin(), from.end(), std::mt19937(5));
    const auto permuted_rows = [&](const Values& matrix) {
      Values result;
      for (const std::int64_t channel : from) {
        const auto row = matrix.begin() + channel * tested.hidden;
        result.insert(result.end(), row, row + tested.hidden);
      }
      return result;
    };
    // Of a matrix with a column for each channel.
    const auto permuted_columns = [&](const auto& matrix) {
      auto result = matrix;
      for (std::size_t i = 0; i < matrix.size(); ++i) {
        const std::int64_t column = static_cast<std::int64_t>(i) % tested.channels;
        result[i] = matrix[i - static_cast<std::size_t>(column) +
                           static_cast<std::size_t>(from[static_cast<std::size_t>(column)])];
      }
      return result;
    };
    const FfnWeights permuted{weights.norm, permuted_rows(weights.gate), permuted_rows(weights.up),
                              permuted_columns(weights.down)};
    const FfnRun after = run(tested, permuted, input, doutput);
    EXPECT_EQ(after.mask, permuted_columns(before.mask));
    EXPECT_NE(after.mask, before.mask);
    const double bound = in_bf16() ? 2e-2 : 1e-6;
    test::expect_close(after.output, test::widen(before.output), bound, "output");
    test::expect_close(after.dinput, test::widen(before.dinput), bound, "dinput");
    test::expect_close(after.gradients.norm, test::widen(before.gradients.norm), bound, "dnorm");
    test::expect_close(after.gradients.gate, test::widen(permuted_rows(before.gradients.gate)),
                       bound, "dgate");
    test::expect_close(after.gradients.up, test::widen(permuted_rows(before.gradients.up)), bound,
                       "dup");
    test::expect_close(after.gradients.down, test::widen(permuted_columns(before.gradients.down)),
                       bound, "ddown");
  }
}

// In a batch of more than a tile, too, first, last and beside the border.
TEST_P(FfnStructureTest, ATokenByItselfIsWhatItIsInABatch) {
  FfnCase tested{.channels = on_cpu() ? 200 : 40, .tokens = on_cpu() ? 1300 : 21};
  EXPECT_EQ(skips_channels(tested), on_cpu());
  const FfnWeights weights = random_weights(tested);
  const Values input = random_rows(tested, 3);
  const Values doutput = random_rows(tested, 4);
  const FfnRun batch = run(tested, weights, input, doutput);
  const std::int64_t tokens = tested.tokens;
  const std::int64_t tile = ffn_tile(on_cpu() ? Backend::cpu : Backend::cuda, tokens);
  for (const std::int64_t token :
       {std::int64_t{0}, std::min(tile, tokens) - 1, tile % tokens, tokens - 1}) {
    const auto row_of = [&](const auto& all, std::int64_t columns) {
      return std::decay_t<decltype(all)>(all.begin() + token * columns,
                                         all.begin() + (token + 1) * columns);
    };
    tested.tokens = 1;
    const FfnRun alone =
        run(tested, weights, row_of(input, tested.hidden), row_of(doutput, tested.hidden));
    EXPECT_EQ(alone.mask, row_of(batch.mask, tested.channels)) << token;
    const double bound = in_bf16() ? 1e-2 : 1e-6;
    test::expect_close(alone.output, test::widen(row_of(batch.output, tested.hidden)), bound,
                       "output");
    test::expect_close(alone.dinput, test::widen(row_of(batch.dinput, tested.hidden)), bound,
                       "dinput");
  }
}

// Two of the same rows in different tiles: where they stand makes no difference to the bit.
TEST_P(FfnStructureTest, EqualTokensOfDifferentTilesGiveTheSameBits) {
  if (!on_cpu()) GTEST_SKIP() << "tiles of GPUs are too large for a model of one";
  constexpr std::int64_t kHalf = 1024;
  const FfnCase tested{.channels = 200, .tokens = 2 * kHalf};
  EXPECT_TRUE(skips_channels(tested));
  ASSERT_EQ(ffn_tile(Backend::cpu, tested.tokens), kHalf);
  const auto doubled = [&](Values rows) {
    const auto half = static_cast<std::ptrdiff_t>(kHalf * tested.hidden);
    std::copy(rows.begin(), rows.begin() + half, rows.begin() + half);
    return rows;
  };
  const FfnRun result = run(tested, random_weights(tested), doubled(random_rows(tested, 3)),
                            doubled(random_rows(tested, 4)));
  const auto expect_halves = [&](const auto& all, const char* what) {
    const auto half = static_cast<std::ptrdiff_t>(all.size() / 2);
    EXPECT_TRUE(std::equal(all.begin(), all.begin() + half, all.begin() + half)) << what;
  };
  expect_halves(result.output, "output");
  expect_halves(result.dinput, "dinput");
  expect_halves(result.mask, "mask");
}

CHASKI_ON_ALL_DEVICES(FfnStructureTest);

}  // namespace
}  // namespace chaski
