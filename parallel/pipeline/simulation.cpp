#include <algorithm>
#include <fmt/format.h>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "parallel/pipeline/schedule.h"

namespace chaski {
namespace {

bool is_compute(Action action) {
  return action == Action::forward || action == Action::backward;
}

// One slot's progress through its program.
struct SlotState {
  Slot slot;
  std::size_t place = 0;  // of its replica among the simulated ones
  const SlotProgram* program = nullptr;
  std::size_t next = 0;
  // When the micro-batch's message was sent (activations to the next stage, gradients to the
  // previous one), and when it was received; negative: not yet.
  std::vector<double> sent_activation, sent_gradient, received_activation, received_gradient;
  std::vector<bool> forward_done, backward_done;

  bool finished() const { return next == program->size(); }
};

// `replicas` ascending: the others neither wait for these nor make them wait.
class Simulator {
 public:
  Simulator(const Roster& roster, std::vector<int> replicas,
            const std::vector<SlotProgram>& programs, double forward_seconds,
            double backward_seconds)
      : roster_(roster),
        replicas_(std::move(replicas)),
        forward_seconds_(forward_seconds),
        backward_seconds_(backward_seconds) {
    if (std::ssize(programs) != roster.num_stages()) {
      throw std::invalid_argument(
          fmt::format("simulate: {} programs for {} stages", programs.size(), roster.num_stages()));
    }
    for (int stage = 0; stage < roster.num_stages(); ++stage) {
      for (std::size_t place = 0; place < replicas_.size(); ++place) {
        states_.push_back(initial_state({replicas_[place], stage}, place,
                                        programs[static_cast<std::size_t>(stage)]));
      }
    }
    const std::size_t live = roster.live_processes().size();
    result_.programs.resize(live);
    clock_.resize(live, 0.0);
    last_computed_.resize(live, -1);
  }

  Simulation run() {
    // Always the compute instruction that can start earliest; among those of one process the slot
    // that did not compute last, so that two hosted slots alternate.
    while (true) {
      const int index = next_state();
      if (index < 0) break;
      execute(states_[static_cast<std::size_t>(index)], index);
    }
    for (const SlotState& state : states_) check_finished(state);
    result_.makespan = *std::max_element(clock_.begin(), clock_.end());
    return std::move(result_);
  }

 private:
  static SlotState initial_state(Slot slot, std::size_t place, const SlotProgram& program) {
    SlotState state;
    state.slot = slot;
    state.place = place;
    state.program = &program;
    int num_micro_batches = 0;
    for (const Instruction& i : program) {
      if (i.micro_batch < 0) throw std::logic_error("simulate: negative micro-batch");
      num_micro_batches = std::max(num_micro_batches, i.micro_batch + 1);
    }
    const auto n = static_cast<std::size_t>(num_micro_batches);
    for (auto* times : {&state.sent_activation, &state.sent_gradient, &state.received_activation,
                        &state.received_gradient}) {
      times->assign(n, -1.0);
    }
    state.forward_done.assign(n, false);
    state.backward_done.assign(n, false);
    return state;
  }

  // That of another stage of the same replica.
  SlotState& state_at(const SlotState& state, int stage) {
    return states_[static_cast<std::size_t>(stage) * replicas_.size() + state.place];
  }

  // When the message that a receive instruction waits for was sent; negative: not yet.
  double sent_at(const SlotState& state, const Instruction& instruction) {
    const bool activation = instruction.action == Action::receive_activation;
    const int stage = state.slot.stage + (activation ? -1 : 1);
    if (stage < 0 || stage >= roster_.num_stages()) {
      throw std::logic_error(fmt::format("simulate: {} has nobody to {} from",
                                         to_string(state.slot), name_of(instruction.action)));
    }
    const SlotState& peer = state_at(state, stage);
    const auto& sent = activation ? peer.sent_activation : peer.sent_gradient;
    const auto m = static_cast<std::size_t>(instruction.micro_batch);
    return m < sent.size() ? sent[m] : -1.0;
  }

  // When the slot can run everything up to and including its next compute instruction (or its end);
  // negative: it waits for a message that was not sent yet.
  double ready_at(const SlotState& state) {
    double ready = 0.0;
    for (std::size_t i = state.next; i < state.program->size(); ++i) {
      const Instruction& instruction = (*state.program)[i];
      if (is_compute(instruction.action)) break;
      if (instruction.action == Action::receive_activation ||
          instruction.action == Action::receive_gradient) {
        const double sent = sent_at(state, instruction);
        if (sent < 0) return -1.0;
        ready = std::max(ready, sent);
      }
    }
    return ready;
  }

  int next_state() {
    int best = -1;
    double best_start = 0.0;
    bool best_turn = false;
    for (int i = 0; i < std::ssize(states_); ++i) {
      const SlotState& state = states_[static_cast<std::size_t>(i)];
      if (state.finished()) continue;
      const double ready = ready_at(state);
      if (ready < 0) continue;
      const auto rank = static_cast<std::size_t>(roster_.rank_of(state.slot));
      const double start = std::max(ready, clock_[rank]);
      const bool turn = last_computed_[rank] != i;
      if (best < 0 || start < best_start || (start == best_start && turn && !best_turn)) {
        best = i;
        best_start = start;
        best_turn = turn;
      }
    }
    return best;
  }

  // Runs the slot up to and including its next compute instruction and the sends right after it.
  void execute(SlotState& state, int index) {
    const auto rank = static_cast<std::size_t>(roster_.rank_of(state.slot));
    const double start = std::max(ready_at(state), clock_[rank]);
    bool computed = false;
    while (!state.finished()) {
      const Instruction& instruction = (*state.program)[state.next];
      const bool send = instruction.action == Action::send_activation ||
                        instruction.action == Action::send_gradient;
      if (computed && !send) break;
      const auto m = static_cast<std::size_t>(instruction.micro_batch);
      switch (instruction.action) {
        case Action::receive_activation:
          once(state, state.received_activation[m], start, instruction);
          break;
        case Action::receive_gradient:
          once(state, state.received_gradient[m], start, instruction);
          break;
        case Action::send_activation:
          require(state, state.forward_done[m], instruction);
          once(state, state.sent_activation[m], clock_[rank], instruction);
          break;
        case Action::send_gradient:
          require(state, state.backward_done[m], instruction);
          once(state, state.sent_gradient[m], clock_[rank], instruction);
          break;
        case Action::forward:
        case Action::backward:
          compute(state, instruction);
          computed = true;
          clock_[rank] = start + (instruction.action == Action::forward ? forward_seconds_
                                                                        : backward_seconds_);
          last_computed_[rank] = index;
          break;
      }
      result_.programs[rank].push_back({state.slot, instruction});
      ++state.next;
    }
  }

  void compute(SlotState& state, const Instruction& instruction) {
    const auto m = static_cast<std::size_t>(instruction.micro_batch);
    const bool first = state.slot.stage == 0;
    const bool last = state.slot.stage + 1 == roster_.num_stages();
    if (instruction.action == Action::forward) {
      require(state, !state.forward_done[m] && (first || state.received_activation[m] >= 0),
              instruction);
      state.forward_done[m] = true;
    } else {
      require(state,
              state.forward_done[m] && !state.backward_done[m] &&
                  (last || state.received_gradient[m] >= 0),
              instruction);
      state.backward_done[m] = true;
    }
  }

  static void require(const SlotState& state, bool condition, const Instruction& instruction) {
    if (condition) return;
    throw std::logic_error(fmt::format("simulate: {} cannot {} micro-batch {} at instruction {}",
                                       to_string(state.slot), name_of(instruction.action),
                                       instruction.micro_batch, state.next));
  }
  static void once(const SlotState& state, double& time, double now,
                   const Instruction& instruction) {
    require(state, time < 0, instruction);
    time = now;
  }

  void check_finished(const SlotState& state) {
    if (!state.finished()) {
      const Instruction& instruction = (*state.program)[state.next];
      throw std::logic_error(fmt::format("simulate: deadlock: {} waits to {} micro-batch {}",
                                         to_string(state.slot), name_of(instruction.action),
                                         instruction.micro_batch));
    }
    for (std::size_t m = 0; m < state.backward_done.size(); ++m) {
      if (state.backward_done[m] != state.forward_done[m]) {
        throw std::logic_error(fmt::format("simulate: {} never runs micro-batch {} backward",
                                           to_string(state.slot), m));
      }
    }
    const auto unread = [&](const std::vector<double>& sent, int stage,
                            std::vector<double> SlotState::*received) {
      for (std::size_t m = 0; m < sent.size(); ++m) {
        if (sent[m] < 0) continue;
        const bool exists = stage >= 0 && stage < roster_.num_stages();
        if (exists) {
          const auto& times = state_at(state, stage).*received;
          if (m < times.size() && times[m] >= 0) continue;
        }
        throw std::logic_error(
            fmt::format("simulate: nobody reads message {} of {}", m, to_string(state.slot)));
      }
    };
    unread(state.sent_activation, state.slot.stage + 1, &SlotState::received_activation);
    unread(state.sent_gradient, state.slot.stage - 1, &SlotState::received_gradient);
  }

  const Roster& roster_;
  std::vector<int> replicas_;
  double forward_seconds_;
  double backward_seconds_;
  std::vector<SlotState> states_;   // by stage · replicas + place
  std::vector<double> clock_;       // by rank
  std::vector<int> last_computed_;  // by rank: index of a state
  Simulation result_;
};

std::vector<int> all_replicas(const Roster& roster) {
  std::vector<int> replicas(static_cast<std::size_t>(roster.num_replicas()));
  std::iota(replicas.begin(), replicas.end(), 0);
  return replicas;
}

// Those that `process` hosts a slot of, those that share a process with one of these, and so on.
std::vector<int> replicas_around(const Roster& roster, int process) {
  std::set<int> processes{process};
  std::set<int> replicas;
  std::vector<int> pending{process};
  while (!pending.empty()) {
    const std::vector<Slot> slots = roster.slots_of(pending.back());
    pending.pop_back();
    for (const Slot slot : slots) {
      if (!replicas.insert(slot.replica).second) continue;
      for (int stage = 0; stage < roster.num_stages(); ++stage) {
        const int host = roster.process_of({slot.replica, stage});
        if (processes.insert(host).second) pending.push_back(host);
      }
    }
  }
  return {replicas.begin(), replicas.end()};
}

}  // namespace

Simulation simulate(const Roster& roster, const std::vector<SlotProgram>& programs_by_stage,
                    double forward_seconds, double backward_seconds) {
  return Simulator(roster, all_replicas(roster), programs_by_stage, forward_seconds,
                   backward_seconds)
      .run();
}

ProcessProgram process_program(const Roster& roster, ScheduleKind kind, int num_micro_batches,
                               int rank) {
  // Of a large job this is a small part.
  std::vector<int> replicas = replicas_around(roster, roster.process_at(rank));
  // A backward pass takes about twice a forward pass.
  const auto programs = stage_programs(kind, roster.num_stages(), num_micro_batches);
  Simulator simulator(roster, std::move(replicas), programs, 1.0, 2.0);
  return simulator.run().programs[static_cast<std::size_t>(rank)];
}

}  // namespace chaski
