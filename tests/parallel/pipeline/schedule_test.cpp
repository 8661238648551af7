#include "parallel/pipeline/schedule.h"

#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <map>
#include <stdexcept>
#include <tuple>

namespace chaski {
namespace {

// "F0 F1 B0 F2 B1 B2", messages left out.
std::string text_of(const SlotProgram& program) {
  std::string text;
  for (const Instruction& instruction : program) {
    const bool forward = instruction.action == Action::forward;
    if (!forward && instruction.action != Action::backward) continue;
    text += fmt::format("{}{}{}", text.empty() ? "" : " ", forward ? 'F' : 'B',
                        instruction.micro_batch);
  }
  return text;
}

// What a process computes in a step, and the most micro-batches whose backward pass is outstanding.
struct Work {
  double seconds = 0;
  int peak_in_flight = 0;
};
Work work_of(const ProcessProgram& program, double forward_seconds, double backward_seconds) {
  Work work;
  int in_flight = 0;
  for (const SlotInstruction& i : program) {
    if (i.instruction.action == Action::forward) {
      work.seconds += forward_seconds;
      work.peak_in_flight = std::max(work.peak_in_flight, ++in_flight);
    } else if (i.instruction.action == Action::backward) {
      work.seconds += backward_seconds;
      --in_flight;
    }
  }
  return work;
}

using Layout = std::tuple<ScheduleKind, int, int>;  // kind, stages, micro-batches

class ScheduleOfLayout : public testing::TestWithParam<Layout> {};

TEST_P(ScheduleOfLayout, RunsEveryMicroBatchOnceForwardThenBackward) {
  const auto [kind, num_stages, num_micro_batches] = GetParam();
  for (int stage = 0; stage < num_stages; ++stage) {
    const SlotProgram program = slot_program(kind, stage, num_stages, num_micro_batches);
    std::map<Action, std::vector<int>> order;
    for (const Instruction& i : program) order[i.action].push_back(i.micro_batch);
    std::vector<int> ascending(static_cast<std::size_t>(num_micro_batches));
    for (int m = 0; m < num_micro_batches; ++m) ascending[static_cast<std::size_t>(m)] = m;
    const std::vector<int> none;
    const bool first = stage == 0;
    const bool last = stage + 1 == num_stages;
    EXPECT_EQ(order[Action::forward], ascending);
    EXPECT_EQ(order[Action::backward], ascending);
    EXPECT_EQ(order[Action::receive_activation], first ? none : ascending);
    EXPECT_EQ(order[Action::send_gradient], first ? none : ascending);
    EXPECT_EQ(order[Action::send_activation], last ? none : ascending);
    EXPECT_EQ(order[Action::receive_gradient], last ? none : ascending);
  }
}

// Closed forms: with all stages equally fast and messages free, GPipe and 1F1B both take
// (M + P - 1)(f + b), so that each stage idles (P - 1)(f + b); 1F1B keeps min(P - s, M)
// micro-batches.
TEST_P(ScheduleOfLayout, SimulationMeetsTheClosedForms) {
  const auto [kind, num_stages, num_micro_batches] = GetParam();
  const double f = 1.0;
  const double b = 2.0;
  const Roster roster = Roster::initial(1, num_stages, num_stages);
  const auto programs = stage_programs(kind, num_stages, num_micro_batches);
  const Simulation simulation = simulate(roster, programs, f, b);
  EXPECT_DOUBLE_EQ(simulation.makespan, (num_micro_batches + num_stages - 1) * (f + b));
  for (int stage = 0; stage < num_stages; ++stage) {
    const auto s = static_cast<std::size_t>(stage);
    const Work work = work_of(simulation.programs[s], f, b);
    EXPECT_DOUBLE_EQ(simulation.makespan - work.seconds, (num_stages - 1) * (f + b));
    const int expected = kind == ScheduleKind::gpipe
                             ? num_micro_batches
                             : std::min(num_stages - stage, num_micro_batches);
    EXPECT_EQ(work.peak_in_flight, expected);
    EXPECT_EQ(max_in_flight(kind, stage, num_stages, num_micro_batches), expected);
    ASSERT_EQ(simulation.programs[s].size(), programs[s].size());
    for (std::size_t i = 0; i < programs[s].size(); ++i) {
      EXPECT_EQ(simulation.programs[s][i].instruction, programs[s][i]);
      EXPECT_EQ(simulation.programs[s][i].slot, (Slot{0, stage}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, ScheduleOfLayout,
    testing::Combine(testing::Values(ScheduleKind::gpipe, ScheduleKind::one_f_one_b),
                     testing::Values(1, 2, 3, 4, 8), testing::Values(1, 2, 3, 4, 8, 16)));

TEST(Schedule, OneForwardOneBackwardOfFourStages) {
  const ScheduleKind kind = ScheduleKind::one_f_one_b;
  EXPECT_EQ(text_of(slot_program(kind, 0, 4, 6)), "F0 F1 F2 F3 B0 F4 B1 F5 B2 B3 B4 B5");
  EXPECT_EQ(text_of(slot_program(kind, 2, 4, 6)), "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 B5");
  EXPECT_EQ(text_of(slot_program(kind, 3, 4, 6)), "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5");
  EXPECT_EQ(text_of(slot_program(ScheduleKind::gpipe, 1, 2, 3)), "F0 F1 F2 B0 B1 B2");
}

TEST(Schedule, RefusesStagesOutsideThePipelineAndStepsWithoutMicroBatches) {
  EXPECT_THROW(slot_program(ScheduleKind::gpipe, 2, 2, 1), std::invalid_argument);
  EXPECT_THROW(slot_program(ScheduleKind::gpipe, 0, 2, 0), std::invalid_argument);
}

TEST(Simulation, RefusesWrongPrograms) {
  const Roster roster = Roster::initial(1, 2, 2);
  const auto good = stage_programs(ScheduleKind::one_f_one_b, 2, 2);
  ASSERT_NO_THROW(simulate(roster, good, 1, 1));

  auto deadlock = good;  // waits for the gradient of a forward pass that comes later
  std::swap(deadlock[0][0], deadlock[0][5]);
  EXPECT_THROW(simulate(roster, deadlock, 1, 1), std::logic_error);

  auto early = good;  // the last stage's backward pass before its forward pass
  const auto forward = std::find(early[1].begin(), early[1].end(), Instruction{Action::forward, 0});
  const auto backward =
      std::find(early[1].begin(), early[1].end(), Instruction{Action::backward, 0});
  std::iter_swap(forward, backward);
  EXPECT_THROW(simulate(roster, early, 1, 1), std::logic_error);

  auto unread = good;
  unread[0].erase(
      std::find(unread[0].begin(), unread[0].end(), Instruction{Action::receive_gradient, 1}));
  EXPECT_THROW(simulate(roster, unread, 1, 1), std::logic_error);

  auto forgotten = good;  // no backward pass of the last micro-batch
  forgotten[0].pop_back();
  EXPECT_THROW(simulate(roster, forgotten, 1, 1), std::logic_error);

  auto without_peer = good;
  without_peer[1].push_back({Action::receive_gradient, 0});
  EXPECT_THROW(simulate(roster, without_peer, 1, 1), std::logic_error);
}

// A process that hosts two slots of the same stage alternates between them; order within each slot
// is that slot's program.
TEST(Simulation, TwoReplicasOnOneProcessAlternate) {
  const Roster roster = Roster::initial(2, 2, 4).with_takeover(3, 2);  // stage 1 of both on one
  const int num_micro_batches = 4;
  const auto programs = stage_programs(ScheduleKind::one_f_one_b, 2, num_micro_batches);
  const Simulation simulation = simulate(roster, programs, 1, 2);
  const ProcessProgram& shared = simulation.programs[2];
  for (const Slot slot : {Slot{0, 1}, Slot{1, 1}}) {
    SlotProgram own;
    for (const SlotInstruction& i : shared) {
      if (i.slot == slot) own.push_back(i.instruction);
    }
    EXPECT_EQ(own, programs[1]);
  }
  int longest_run = 0;
  int run = 0;
  Slot previous{-1, -1};
  for (const SlotInstruction& i : shared) {
    const Action action = i.instruction.action;
    if (action != Action::forward && action != Action::backward) continue;
    run = i.slot == previous ? run + 1 : 1;
    previous = i.slot;
    longest_run = std::max(longest_run, run);
  }
  EXPECT_LE(longest_run, 2);
  EXPECT_DOUBLE_EQ(work_of(shared, 1, 2).seconds, 2 * num_micro_batches * 3.0);
  EXPECT_EQ(shared, process_program(roster, ScheduleKind::one_f_one_b, num_micro_batches, 2));
}

// A process's program is its part of the whole simulation, though only the replicas that share
// processes with its own are simulated for it.
TEST(Simulation, ProgramsOfProcessesAreThoseOfTheWhole) {
  const Roster initial = Roster::initial(4, 3, 12);
  const Roster chained = initial.with_takeover(0, 1).with_takeover(5, 6);  // replicas 0-1-2
  const auto programs = stage_programs(ScheduleKind::one_f_one_b, 3, 5);
  for (const Roster& roster : {initial, initial.with_takeover(11, 0), chained}) {
    const Simulation whole = simulate(roster, programs, 1, 2);
    for (std::size_t rank = 0; rank < whole.programs.size(); ++rank) {
      EXPECT_EQ(process_program(roster, ScheduleKind::one_f_one_b, 5, static_cast<int>(rank)),
                whole.programs[rank]);
    }
  }
}

TEST(Schedule, SlotsThatShareAStageNeedStashesForEach) {
  const Roster roster = Roster::initial(2, 3, 6).with_takeover(1, 0).with_takeover(5, 0);
  const auto needed = [&](ScheduleKind kind, int process, int stage) {
    return stashes_needed(kind, roster, process, stage, 8);
  };
  EXPECT_EQ(needed(ScheduleKind::one_f_one_b, 0, 0), 2 * 3);  // of two replicas
  EXPECT_EQ(needed(ScheduleKind::one_f_one_b, 0, 2), 1);
  EXPECT_EQ(needed(ScheduleKind::one_f_one_b, 0, 1), 0);
  EXPECT_EQ(needed(ScheduleKind::gpipe, 0, 0), 2 * 8);
  EXPECT_EQ(needed(ScheduleKind::gpipe, 3, 1), 8);
}

TEST(Simulation, EveryTakeoverOfASmallLayoutCanRun) {
  for (const ScheduleKind kind : {ScheduleKind::gpipe, ScheduleKind::one_f_one_b}) {
    for (int dead = 0; dead < 6; ++dead) {
      for (int by = 0; by < 6; ++by) {
        if (by == dead) continue;
        const Roster once = Roster::initial(2, 3, 6).with_takeover(dead, by);
        const auto programs = stage_programs(kind, 3, 5);
        ASSERT_NO_THROW(simulate(once, programs, 1, 2)) << dead << " by " << by;
        for (int third = 0; third < 6; ++third) {
          if (third == dead || third == by) continue;
          ASSERT_NO_THROW(simulate(once.with_takeover(by, third), programs, 1, 2));
        }
      }
    }
  }
}

// Whose program nothing is interleaved with is found without it.
TEST(Simulation, OfAProcessWithOneSlotIsItsProgram) {
  const Roster roster = Roster::initial(2, 3, 6);
  for (const ScheduleKind kind : {ScheduleKind::gpipe, ScheduleKind::one_f_one_b}) {
    const Simulation simulation = simulate(roster, stage_programs(kind, 3, 5), 1, 2);
    for (int rank = 0; rank < 6; ++rank) {
      EXPECT_EQ(process_program(roster, kind, 5, rank),
                simulation.programs[static_cast<std::size_t>(rank)]);
    }
  }
}

// All stages on one process: nothing overlaps, so the time is the sum of the work.
TEST(Simulation, OneProcessHostsThePipeline) {
  const Roster roster = Roster::initial(1, 3, 3).with_takeover(1, 0).with_takeover(2, 0);
  const Simulation simulation =
      simulate(roster, stage_programs(ScheduleKind::one_f_one_b, 3, 4), 1, 2);
  EXPECT_DOUBLE_EQ(simulation.makespan, 3 * 4 * 3.0);
}

}  // namespace
}  // namespace chaski
