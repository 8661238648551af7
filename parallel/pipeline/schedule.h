#pragma once

#include <vector>

#include "parallel/membership/roster.h"

namespace chaski {

enum class ScheduleKind { gpipe, one_f_one_b };

enum class Action {
  receive_activation,  // from the stage before
  forward,
  send_activation,   // to the stage after
  receive_gradient,  // from the stage after
  backward,
  send_gradient,  // to the stage before
};
const char* name_of(Action action);

struct Instruction {
  Action action = Action::forward;
  int micro_batch = 0;
  bool operator==(const Instruction&) const = default;
};

// What one slot does in a step, in order. Sends do not block; receives wait. On each link both
// directions carry the micro-batches in ascending order.
using SlotProgram = std::vector<Instruction>;

// Throws std::invalid_argument for a stage outside the pipeline or no micro-batch.
SlotProgram slot_program(ScheduleKind kind, int stage, int num_stages, int num_micro_batches);

// Forward passes whose backward pass is outstanding, at most: min(P - stage, M) for 1F1B, M for
// GPipe.
int max_in_flight(ScheduleKind kind, int stage, int num_stages, int num_micro_batches);

// The same of all slots of the stage that a process hosts: how many micro-batches the one Stage
// that they share must be able to keep.
int stashes_needed(ScheduleKind kind, const Roster& roster, int process, int stage,
                   int num_micro_batches);

struct SlotInstruction {
  Slot slot;
  Instruction instruction;
  bool operator==(const SlotInstruction&) const = default;
};
using ProcessProgram = std::vector<SlotInstruction>;

struct Simulation {
  // By rank of the live processes, in the order in which each executes them.
  std::vector<ProcessProgram> programs;
  double makespan = 0;
};

// Runs the slots' programs on the processes of the roster, one compute instruction at a time per
// process, messages taking no time. A process with several slots runs whichever is ready, in turn;
// the order that results is the interleaving that the executors follow, a function of the
// arguments only. Throws std::logic_error when the programs deadlock, run a backward pass before
// its forward pass, or leave a message unread.
Simulation simulate(const Roster& roster, const std::vector<SlotProgram>& programs_by_stage,
                    double forward_seconds, double backward_seconds);

// The programs of all stages under one schedule.
std::vector<SlotProgram> stage_programs(ScheduleKind kind, int num_stages, int num_micro_batches);
// What the process of `rank` executes in a step: its part of the simulation of all slots.
ProcessProgram process_program(const Roster& roster, ScheduleKind kind, int num_micro_batches,
                               int rank);

}  // namespace chaski
