#include "parallel/membership/roster.h"

#include <gtest/gtest.h>
#include <set>
#include <stdexcept>

#include "parallel/membership/message_tags.h"

namespace chaski {
namespace {

TEST(Roster, InitialLayoutIsStageMajor) {
  const Roster roster = Roster::initial(3, 2, 6);
  EXPECT_EQ(roster.process_of({0, 0}), 0);
  EXPECT_EQ(roster.process_of({2, 0}), 2);
  EXPECT_EQ(roster.process_of({0, 1}), 3);
  EXPECT_EQ(roster.process_of({2, 1}), 5);
  EXPECT_EQ(roster.version(), 0);
  for (int process = 0; process < 6; ++process) {
    const auto slots = roster.slots_of(process);
    ASSERT_EQ(slots.size(), 1u);
    EXPECT_EQ(roster.process_of(slots[0]), process);
    EXPECT_EQ(roster.rank_of(process), process);
  }
}

TEST(Roster, RefusesAWrongNumberOfProcesses) {
  EXPECT_THROW(Roster::initial(2, 2, 3), std::invalid_argument);
  EXPECT_THROW(Roster::initial(0, 1, 0), std::invalid_argument);
  EXPECT_THROW(Roster::initial(-1, -1, 1), std::invalid_argument);
}

TEST(Roster, Neighbours) {
  const Roster roster = Roster::initial(2, 3, 6);
  EXPECT_FALSE(roster.previous_stage({1, 0}).has_value());
  EXPECT_EQ(roster.next_stage({1, 0}), (Slot{1, 1}));
  EXPECT_EQ(roster.previous_stage({1, 2}), (Slot{1, 1}));
  EXPECT_FALSE(roster.next_stage({1, 2}).has_value());
  EXPECT_EQ(roster.ranks_of_stage(1), (std::vector<int>{2, 3}));
  EXPECT_THROW(roster.process_of({2, 0}), std::invalid_argument);
  EXPECT_THROW(roster.process_of({0, 3}), std::invalid_argument);
}

TEST(Roster, EveryRowOfTheGlobalBatchBelongsToOneReplica) {
  const Roster roster = Roster::initial(4, 1, 4);
  std::set<std::int64_t> rows;
  for (int replica = 0; replica < 4; ++replica) {
    const RowRange range = roster.rows_of(replica, 48);
    for (std::int64_t i = 0; i < range.count; ++i) {
      EXPECT_TRUE(rows.insert(range.begin + i).second);
    }
  }
  EXPECT_EQ(rows.size(), 48u);
  EXPECT_EQ(*rows.begin(), 0);
  EXPECT_EQ(*rows.rbegin(), 47);
  EXPECT_EQ(roster.num_micro_batches(48, 3), 4);
  EXPECT_THROW(roster.num_micro_batches(48, 5), std::invalid_argument);
  EXPECT_THROW(roster.rows_of(0, 50), std::invalid_argument);
  EXPECT_THROW(roster.rows_of(4, 48), std::invalid_argument);
}

TEST(Roster, TakeoverMovesSlotsAndRenumbersRanks) {
  const Roster before = Roster::initial(2, 2, 4);
  const Roster after = before.with_takeover(1, 0);  // both of stage 0
  EXPECT_EQ(after.version(), 1);
  EXPECT_EQ(after.slots_of(0), (std::vector<Slot>{{0, 0}, {1, 0}}));
  EXPECT_TRUE(after.slots_of(1).empty());
  EXPECT_FALSE(after.is_live(1));
  EXPECT_EQ(after.rank_of(0), 0);
  EXPECT_EQ(after.rank_of(2), 1);
  EXPECT_EQ(after.rank_of(3), 2);
  EXPECT_EQ(after.process_at(1), 2);
  EXPECT_THROW(after.rank_of(1), std::invalid_argument);
  EXPECT_EQ(after.ranks_of_stage(0), (std::vector<int>{0}));
  EXPECT_EQ(after.ranks_of_stage(1), (std::vector<int>{1, 2}));
  // What a replica trains on does not depend on who hosts it.
  EXPECT_EQ(after.rows_of(1, 16), before.rows_of(1, 16));
  // The one it came from is unchanged.
  EXPECT_EQ(before, Roster::initial(2, 2, 4));
  // The one that took over dies as well: both of its slots move.
  const Roster third = after.with_takeover(0, 3);
  EXPECT_EQ(third.slots_of(3), (std::vector<Slot>{{0, 0}, {1, 0}, {1, 1}}));
  EXPECT_EQ(third.version(), 2);
  EXPECT_THROW(after.with_takeover(1, 0), std::invalid_argument);
  EXPECT_THROW(after.with_takeover(0, 1), std::invalid_argument);
  EXPECT_THROW(after.with_takeover(2, 2), std::invalid_argument);
}

TEST(Roster, MessageTagsAreDistinctAndSmall) {
  constexpr int kStages = Roster::kMaxSlots / 2;
  const Roster roster = Roster::initial(2, kStages, Roster::kMaxSlots);
  std::set<int> tags{Communicator::kGatherTag};
  for (int stage = 0; stage < kStages; ++stage) {
    for (const Slot slot : roster.replicas_of(stage)) {
      EXPECT_TRUE(tags.insert(activation_tag(roster, slot)).second);
      EXPECT_TRUE(tags.insert(gradient_tag(roster, slot)).second);
    }
    EXPECT_TRUE(tags.insert(reduce_scatter_tag(stage)).second);
    EXPECT_TRUE(tags.insert(all_gather_tag(stage)).second);
  }
  EXPECT_LE(*tags.rbegin(), 32767);
  const int too_many = Roster::kMaxSlots + 1;
  EXPECT_THROW(Roster::initial(1, too_many, too_many), std::invalid_argument);
}

}  // namespace
}  // namespace chaski
