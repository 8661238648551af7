#include "app/training/channel_statistics.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <vector>

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

// Four channels in two layers.
LlamaConfig two_layers() {
  LlamaConfig model;
  model.num_layers = 2;
  model.intermediate_size = 4;
  return model;
}
const StageRange kBoth{0, 2, true, true};
const StageRange kFirst{0, 1, true, false};
const StageRange kSecond{1, 1, false, true};

// Every figure is a sum of halves, quarters and eighths: exact.
TEST(ChannelStatistics, FiguresAreTheLayersOwn) {
  ChannelStatistics statistics(two_layers(), 0, 100);
  // Two steps; shares of 8 selections: 3/8, 1/8, 0, 4/8 and 2/8, 2/8, 2/8, 2/8.
  statistics.add(kBoth, {{{1, 1, 0, 2}, 4}, {{0, 2, 1, 1}, 1}}, 1);
  statistics.add(kBoth, {{{2, 0, 0, 2}, 2}, {{2, 0, 1, 1}, 0}}, 2);
  const Json first = statistics.report(2);
  EXPECT_EQ(first.at("positive_share"), (Json{6.0 / 8, 1.0 / 8}));
  EXPECT_FALSE(first.contains("overlap")) << "with what?";
  // 1/4, 1/4, 1/4, 1/4 against the first layer's: 1/4 + 1/8 + 0 + 1/4; 1, 0, 0, 0 against the
  // second's: 1/4.
  statistics.add(kBoth, {{{1, 1, 1, 1}, 4}, {{4, 0, 0, 0}, 3}}, 3);
  const Json second = statistics.report(3);
  EXPECT_EQ(second.at("positive_share"), (Json{1.0, 3.0 / 4}));
  EXPECT_EQ(second.at("overlap"), (Json{5.0 / 8, 2.0 / 8}));
  // The report before counts, not the first one; alike is 1, and nothing in common 0.
  statistics.add(kBoth, {{{2, 2, 2, 2}, 0}, {{0, 4, 4, 0}, 8}}, 4);
  const Json third = statistics.report(4);
  EXPECT_EQ(third.at("positive_share"), (Json{0.0, 1.0}));
  EXPECT_EQ(third.at("overlap"), (Json{1.0, 0.0}));
}

// A run from the 10th step on; what the first layer selects in each of the next ones.
const std::vector<std::vector<std::uint32_t>> kSteps = {{1, 1, 0, 0}, {1, 0, 1, 0}, {2, 0, 0, 0},
                                                        {0, 2, 0, 0}, {2, 0, 0, 0}, {2, 0, 0, 0},
                                                        {2, 0, 0, 0}};

TEST(ChannelStatistics, ChannelsAreDeadAfterSoManyStepsUnused) {
  // However often is reported: after every step, or only after some.
  for (const std::int64_t every : {1, 3, 4, 5, 6, 7}) {
    ChannelStatistics statistics(two_layers(), 10, 5);
    for (std::int64_t i = 0; i < std::ssize(kSteps); ++i) {
      const std::int64_t step = 11 + i;
      statistics.add(kBoth, {{kSteps[i], 0}, {{2, 0, 0, 0}, 0}}, step);
      if (step % every != 0) continue;
      const Json report = statistics.report(step);
      // In the first layer, of the four channels the last was never selected, the third in the 12th
      // step only.
      const std::map<std::int64_t, Json> dead{{15, {1, 3}}, {16, {1, 3}}, {17, {2, 3}}};
      ASSERT_EQ(report.contains("dead_channels"), step >= 15) << step;
      if (step < 15) continue;
      EXPECT_EQ(report.at("dead_channels"), dead.at(step)) << step << " " << every;
    }
  }
}

TEST(ChannelStatistics, TheSummaryTellsOfDeadChannelsOnceTheyAreKnown) {
  ChannelStatistics statistics(two_layers(), 10, 2);
  statistics.add(kBoth, {{{4, 0, 0, 4}, 6}, {{4, 4, 0, 0}, 2}}, 11);
  statistics.report(11);
  EXPECT_EQ(statistics.summary(), "50.0 % of the kept gates are positive");
  statistics.add(kBoth, {{{4, 0, 0, 4}, 6}, {{4, 0, 4, 0}, 2}}, 12);
  statistics.report(12);
  EXPECT_EQ(statistics.summary(),
            "50.0 % of the kept gates are positive; no token selected 3 of the 8 channels in "
            "the last 2 steps");
}

// Processes with a stage each have the sums of their own layers, at the same places.
TEST(ChannelStatistics, SumsOfProcessesAddUp) {
  ChannelStatistics whole(two_layers(), 0, 1), first(two_layers(), 0, 1);
  ChannelStatistics second(two_layers(), 0, 1);
  const ChannelUse a{{3, 0, 1, 0}, 2}, b{{0, 0, 2, 2}, 1};
  whole.add(kBoth, {a, b}, 1);
  first.add(kFirst, {a}, 1);
  second.add(kSecond, {b}, 1);
  for (std::size_t i = 0; i < first.sums().size(); ++i) first.sums()[i] += second.sums()[i];
  for (std::size_t i = 0; i < first.last_selected().size(); ++i) {
    first.last_selected()[i] = std::max(first.last_selected()[i], second.last_selected()[i]);
  }
  const Json report = first.report(1);
  EXPECT_EQ(report, whole.report(1));
  EXPECT_EQ(report.at("positive_share"), (Json{2.0 / 4, 1.0 / 4}));
  EXPECT_EQ(report.at("dead_channels"), (Json{2, 2}));
  EXPECT_EQ(first.summary().substr(0, 7), "37.5 % ");
}

}  // namespace
}  // namespace chaski
