#include "app/channel_statistics.h"

#include <gtest/gtest.h>

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
  statistics.add(kBoth, {{{1, 1, 0, 2}, 4}, {{0, 2, 1, 1}, 1}});
  statistics.add(kBoth, {{{2, 0, 0, 2}, 2}, {{2, 0, 1, 1}, 0}});
  const Json first = statistics.report(2);
  EXPECT_EQ(first.at("positive_share"), (Json{6.0 / 8, 1.0 / 8}));
  EXPECT_EQ(first.at("dead_channels"), (Json{0, 0}));
  EXPECT_FALSE(first.contains("overlap")) << "with what?";
  // 1/4, 1/4, 1/4, 1/4 against the first layer's: 1/4 + 1/8 + 0 + 1/4; 1, 0, 0, 0 against the
  // second's: 1/4.
  statistics.add(kBoth, {{{1, 1, 1, 1}, 4}, {{4, 0, 0, 0}, 3}});
  const Json second = statistics.report(3);
  EXPECT_EQ(second.at("positive_share"), (Json{1.0, 3.0 / 4}));
  EXPECT_EQ(second.at("overlap"), (Json{5.0 / 8, 2.0 / 8}));
  // The report before counts, not the first one; alike is 1, and nothing in common 0.
  statistics.add(kBoth, {{{2, 2, 2, 2}, 0}, {{0, 4, 4, 0}, 8}});
  const Json third = statistics.report(4);
  EXPECT_EQ(third.at("positive_share"), (Json{0.0, 1.0}));
  EXPECT_EQ(third.at("overlap"), (Json{1.0, 0.0}));
}

TEST(ChannelStatistics, ChannelsAreDeadAfterSoManyStepsUnused) {
  ChannelStatistics statistics(two_layers(), 10, 5);
  const auto dead_after = [&](std::int64_t step, const std::vector<std::uint32_t>& first,
                              const std::vector<std::uint32_t>& second) {
    statistics.add(kBoth, {{first, 0}, {second, 0}});
    return statistics.report(step).at("dead_channels");
  };
  EXPECT_EQ(dead_after(12, {1, 1, 0, 0}, {2, 0, 0, 0}), (Json{0, 0}));
  EXPECT_EQ(dead_after(14, {0, 2, 0, 0}, {2, 0, 0, 0}), (Json{0, 0})) << "4 steps after the 10th";
  EXPECT_EQ(dead_after(15, {0, 2, 0, 0}, {2, 0, 0, 0}), (Json{2, 3})) << "5 steps";
  EXPECT_EQ(statistics.summary(),
            "0.0 % of the kept gates are positive; 5 of 8 channels were selected by no token in 5 "
            "steps or more");
  EXPECT_EQ(dead_after(16, {0, 1, 1, 0}, {2, 0, 0, 0}), (Json{1, 3})) << "one came back";
  EXPECT_EQ(dead_after(17, {0, 2, 0, 0}, {1, 1, 1, 1}), (Json{2, 0})) << "one not since the 12th";
  EXPECT_EQ(dead_after(21, {0, 0, 0, 2}, {1, 1, 1, 1}), (Json{2, 0}));
  EXPECT_EQ(dead_after(22, {0, 0, 0, 2}, {1, 1, 1, 1}), (Json{3, 0})) << "one not since the 17th";
}

// Processes with a stage each have the sums of their own layers, at the same places.
TEST(ChannelStatistics, SumsOfProcessesAddUp) {
  ChannelStatistics whole(two_layers(), 0, 100), first(two_layers(), 0, 100);
  ChannelStatistics second(two_layers(), 0, 100);
  const ChannelUse a{{3, 0, 1, 0}, 2}, b{{0, 0, 2, 2}, 1};
  whole.add(kBoth, {a, b});
  first.add(kFirst, {a});
  second.add(kSecond, {b});
  for (std::size_t i = 0; i < first.sums().size(); ++i) first.sums()[i] += second.sums()[i];
  const Json report = first.report(1);
  EXPECT_EQ(report, whole.report(1));
  EXPECT_EQ(report.at("positive_share"), (Json{2.0 / 4, 1.0 / 4}));
  EXPECT_EQ(first.summary().substr(0, 7), "37.5 % ");
}

}  // namespace
}  // namespace chaski
