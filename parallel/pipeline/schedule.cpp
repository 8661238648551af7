#include "parallel/pipeline/schedule.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

namespace chaski {
namespace {

class ProgramBuilder {
 public:
  ProgramBuilder(bool first, bool last) : first_(first), last_(last) {}

  void forward(int m) {
    if (!first_) program_.push_back({Action::receive_activation, m});
    program_.push_back({Action::forward, m});
    if (!last_) program_.push_back({Action::send_activation, m});
  }
  void backward(int m) {
    if (!last_) program_.push_back({Action::receive_gradient, m});
    program_.push_back({Action::backward, m});
    if (!first_) program_.push_back({Action::send_gradient, m});
  }
  SlotProgram take() { return std::move(program_); }

 private:
  bool first_;
  bool last_;
  SlotProgram program_;
};

}  // namespace

const char* name_of(Action action) {
  switch (action) {
    case Action::receive_activation:
      return "receive activation";
    case Action::forward:
      return "forward";
    case Action::send_activation:
      return "send activation";
    case Action::receive_gradient:
      return "receive gradient";
    case Action::backward:
      return "backward";
    case Action::send_gradient:
      return "send gradient";
  }
  return "unknown";
}

int max_in_flight(ScheduleKind kind, int stage, int num_stages, int num_micro_batches) {
  if (kind == ScheduleKind::gpipe) return num_micro_batches;
  return std::min(num_stages - stage, num_micro_batches);
}

int stashes_needed(ScheduleKind kind, const Roster& roster, int process, int stage,
                   int num_micro_batches) {
  int needed = 0;
  for (const Slot slot : roster.replicas_of(stage)) {
    if (roster.process_of(slot) == process) {
      needed += max_in_flight(kind, stage, roster.num_stages(), num_micro_batches);
    }
  }
  return needed;
}

SlotProgram slot_program(ScheduleKind kind, int stage, int num_stages, int num_micro_batches) {
  if (stage < 0 || stage >= num_stages || num_micro_batches < 1) {
    throw std::invalid_argument(fmt::format("schedule: stage {} of {}, {} micro-batches", stage,
                                            num_stages, num_micro_batches));
  }
  // GPipe runs all forward passes first. 1F1B runs only as many as it takes until the first
  // gradient comes back, then alternates. Either way the micro-batches go in ascending order.
  const int ahead = max_in_flight(kind, stage, num_stages, num_micro_batches);
  ProgramBuilder builder(stage == 0, stage + 1 == num_stages);
  for (int m = 0; m < ahead; ++m) builder.forward(m);
  for (int m = 0; m < num_micro_batches; ++m) {
    builder.backward(m);
    if (m + ahead < num_micro_batches) builder.forward(m + ahead);
  }
  return builder.take();
}

std::vector<SlotProgram> stage_programs(ScheduleKind kind, int num_stages, int num_micro_batches) {
  std::vector<SlotProgram> programs;
  for (int stage = 0; stage < num_stages; ++stage) {
    programs.push_back(slot_program(kind, stage, num_stages, num_micro_batches));
  }
  return programs;
}

}  // namespace chaski
