#include "parallel/pipeline/executor.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/cross_entropy.h"
#include "parallel/membership/message_tags.h"
#include "parallel/pipeline/activation_link.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

// Two tensors on their way keep the sender from waiting while the receiver computes with one.
constexpr int kMessageBuffers = 2;

// How long an aborted step's messages are waited for; what did not end by then never will.
constexpr std::chrono::milliseconds kDrainLimit{2000};

// A hosted slot with its links to the neighbour stages. Where the neighbour is hosted by the same
// process the links are absent and the tensors are handed over here.
struct Lane {
  HostedSlot hosted;
  int in_flight = 1;
  std::optional<ReceiveLink> activations_in;
  std::optional<SendLink> activations_out;
  std::optional<ReceiveLink> gradients_in;
  std::optional<SendLink> gradients_out;
  Lane* previous = nullptr;  // hosted here as well
  Lane* next = nullptr;
  // By micro-batch modulo in_flight.
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<Tensor> output_gradients;
  std::vector<Buffer> local_gradients;  // copies of what `next` hands back
  Tensor input_gradient;                // of the last backward pass
  std::vector<MicroBatch> batches;      // of the step
  std::vector<Shape> shapes;            // of the activations, by micro-batch

  std::size_t index(int m) const { return static_cast<std::size_t>(m % in_flight); }
  std::int64_t stage_slot(int m) const { return hosted.first_stage_slot + m % in_flight; }
  Stage& stage() const { return *hosted.stage; }
};

void check_hosted(const Roster& roster, int rank, const std::vector<HostedSlot>& hosted,
                  ScheduleKind kind, int num_micro_batches) {
  const std::vector<Slot> expected = roster.slots_of(roster.process_at(rank));
  if (expected.size() != hosted.size()) {
    throw std::invalid_argument(fmt::format("pipeline: process of rank {} hosts {} slots, {} given",
                                            rank, expected.size(), hosted.size()));
  }
  if (roster.num_slots() > kMaxSlots) {
    throw std::invalid_argument(
        fmt::format("parallel: {} slots; at most {} allowed", roster.num_slots(), kMaxSlots));
  }
  for (const HostedSlot& h : hosted) {
    if (std::find(expected.begin(), expected.end(), h.slot) == expected.end()) {
      throw std::invalid_argument(
          fmt::format("pipeline: rank {} does not host {}", rank, to_string(h.slot)));
    }
    const int needed = max_in_flight(kind, h.slot.stage, roster.num_stages(), num_micro_batches);
    const std::int64_t room = h.stage->options().micro_batches_in_flight;
    if (h.first_stage_slot + needed > room) {
      throw std::invalid_argument(fmt::format(
          "pipeline: {} needs stage slots {} to {}, the stage has {}", to_string(h.slot),
          h.first_stage_slot, h.first_stage_slot + needed - 1, room));
    }
  }
}

}  // namespace

struct PipelineExecutor::Implementation {
  Implementation(Communicator& communicator, const Roster& roster, ScheduleKind kind,
                 int num_micro_batches, std::vector<HostedSlot> hosted)
      : communicator(communicator), num_micro_batches(num_micro_batches) {
    check_hosted(roster, communicator.rank(), hosted, kind, num_micro_batches);
    std::sort(hosted.begin(), hosted.end(),
              [](const HostedSlot& a, const HostedSlot& b) { return a.slot < b.slot; });
    program = process_program(roster, kind, num_micro_batches, communicator.rank());
    lanes.resize(hosted.size());
    for (std::size_t i = 0; i < hosted.size(); ++i) {
      lanes[i].hosted = hosted[i];
      lanes[i].in_flight =
          max_in_flight(kind, hosted[i].slot.stage, roster.num_stages(), num_micro_batches);
    }
    for (Lane& lane : lanes) create_links(lane, roster);
    connect_links();
    find_last_backward_passes();
  }

  template <typename Wait>
  auto timed(const Wait& wait) {
    const auto start = Clock::now();
    struct Stop {
      const Clock::time_point& start;
      double& total;
      ~Stop() { total += std::chrono::duration<double>(Clock::now() - start).count(); }
    } stop{start, result.wait_seconds};
    return wait();
  }

  void create_links(Lane& lane, const Roster& roster) {
    const auto in_flight = static_cast<std::size_t>(lane.in_flight);
    lane.inputs.resize(in_flight);
    lane.outputs.resize(in_flight);
    lane.output_gradients.resize(in_flight);
    const StageOptions& options = lane.stage().options();
    LinkOptions link;
    link.dtype = lane.stage().parameters().types().compute;
    link.largest = {options.micro_batch * options.sequence_length,
                    lane.stage().config().hidden_size};
    const auto to = [&](Slot neighbour, int tag) {
      link.peer = roster.rank_of(neighbour);
      link.tag = tag;
      return link;
    };
    Device& device = lane.stage().parameters().device();
    const Slot slot = lane.hosted.slot;
    if (const auto previous = roster.previous_stage(slot)) {
      lane.previous = lane_of(*previous);
      if (lane.previous == nullptr) {
        lane.activations_in.emplace(communicator, device,
                                    to(*previous, activation_tag(roster, *previous)),
                                    kMessageBuffers);
        lane.gradients_out.emplace(communicator, device, to(*previous, gradient_tag(roster, slot)),
                                   kMessageBuffers, kMessageBuffers);
      }
    }
    if (const auto next = roster.next_stage(slot)) {
      lane.next = lane_of(*next);
      if (lane.next == nullptr) {
        lane.activations_out.emplace(communicator, device, to(*next, activation_tag(roster, slot)),
                                     lane.in_flight, 0);
        lane.gradients_in.emplace(communicator, device, to(*next, gradient_tag(roster, *next)),
                                  kMessageBuffers);
      } else {
        for (int i = 0; i < lane.in_flight; ++i) {
          lane.local_gradients.push_back(
              device.allocate(link.dtype, link.largest, MemoryCategory::communication));
        }
      }
    }
  }

  // In one order on all processes: nobody waits for one who waits for him.
  void connect_links() {
    std::map<int, std::function<void()>> by_tag;
    const auto add = [&](auto& link) {
      if (link) by_tag[link->tag()] = [&link] { link->connect(); };
    };
    for (Lane& lane : lanes) {
      add(lane.activations_in);
      add(lane.gradients_in);
      add(lane.activations_out);
      add(lane.gradients_out);
    }
    for (const auto& [tag, connect] : by_tag) connect();
  }

  Lane* lane_of(Slot slot) {
    for (Lane& lane : lanes) {
      if (lane.hosted.slot == slot) return &lane;
    }
    return nullptr;
  }

  // Gradients of a Stage are final only in its last backward pass, which may be another slot's.
  void find_last_backward_passes() {
    std::vector<const Stage*> seen;
    tells_listener.assign(program.size(), false);
    for (std::size_t i = program.size(); i-- > 0;) {
      if (program[i].instruction.action != Action::backward) continue;
      const Stage* stage = lane_of(program[i].slot)->hosted.stage;
      if (std::find(seen.begin(), seen.end(), stage) != seen.end()) continue;
      seen.push_back(stage);
      tells_listener[i] = true;
    }
  }

  void fetch(Lane& lane, const BatchSource& source, int count) {
    lane.batches.clear();
    lane.shapes.clear();
    for (int m = 0; m < count; ++m) {
      lane.batches.push_back(source(lane.hosted.slot.replica, m));
      const Tensor& tokens = lane.batches.back().tokens;
      lane.shapes.push_back({tokens.num_elements(), lane.stage().config().hidden_size});
    }
  }

  void execute(std::size_t at, float gradient_scale) {
    const Instruction& instruction = program[at].instruction;
    Lane& lane = *lane_of(program[at].slot);
    const int m = instruction.micro_batch;
    switch (instruction.action) {
      case Action::receive_activation:
        lane.inputs[lane.index(m)] = lane.previous != nullptr
                                         ? lane.previous->outputs[lane.previous->index(m)]
                                         : timed([&] { return lane.activations_in->receive(m); });
        break;
      case Action::forward:
        if (lane.activations_out) timed([&] { lane.activations_out->reclaim(m); });
        lane.outputs[lane.index(m)] =
            lane.stage().forward(lane.stage_slot(m), lane.batches[static_cast<std::size_t>(m)],
                                 lane.inputs[lane.index(m)], gradient_scale);
        if (lane.activations_in) lane.activations_in->release(m);  // the Stage keeps its own copy
        break;
      case Action::send_activation:
        if (lane.activations_out) lane.activations_out->send(m, lane.outputs[lane.index(m)]);
        break;
      case Action::receive_gradient:
        if (lane.gradients_in) {
          lane.output_gradients[lane.index(m)] =
              timed([&] { return lane.gradients_in->receive(m); });
        }
        break;
      case Action::backward:
        lane.input_gradient =
            lane.stage().backward(lane.stage_slot(m), lane.batches[static_cast<std::size_t>(m)],
                                  lane.output_gradients[lane.index(m)],
                                  tells_listener[at] ? lane.hosted.listener : nullptr);
        if (lane.gradients_in) lane.gradients_in->release(m);
        break;
      case Action::send_gradient:
        if (lane.gradients_out) {
          timed([&] { lane.gradients_out->send(m, lane.input_gradient); });
        } else {
          hand_back(lane, m);
        }
        break;
    }
  }

  // The gradient goes to the lane of the previous stage, which may use it much later: a copy.
  static void hand_back(const Lane& lane, int m) {
    Lane& to = *lane.previous;
    const Buffer& buffer = to.local_gradients[to.index(m)];
    const Tensor target(buffer.tensor().device(), buffer.tensor().dtype(),
                        lane.input_gradient.shape(), buffer.tensor().raw());
    copy(lane.input_gradient, target);
    to.output_gradients[to.index(m)] = target;
  }

  // Adds what the lanes' stages have seen since this was last called; several slots may share one.
  void take_loss_totals() {
    for (Lane& lane : lanes) {
      const LossTotals totals = lane.stage().take_loss_totals();
      result.loss_sum += totals.sum;
      result.num_targets += totals.num_targets;
    }
  }

  void begin_result() {
    take_loss_totals();  // of a step that was given up
    result = {};
    connect_links();  // anew after such a step
  }

  PipelineResult run_step(const BatchSource& source, float gradient_scale) {
    begin_result();
    for (Lane& lane : lanes) {
      fetch(lane, source, num_micro_batches);
      if (lane.activations_in) lane.activations_in->begin(lane.shapes);
      if (lane.gradients_in) lane.gradients_in->begin(lane.shapes);
    }
    for (std::size_t i = 0; i < program.size(); ++i) execute(i, gradient_scale);
    for (Lane& lane : lanes) {
      if (lane.activations_out) timed([&] { lane.activations_out->finish(); });
      if (lane.gradients_out) timed([&] { lane.gradients_out->finish(); });
    }
    take_loss_totals();
    return result;
  }

  PipelineResult evaluate(const BatchSource& source, int count) {
    begin_result();
    for (Lane& lane : lanes) {
      fetch(lane, source, count);
      if (lane.activations_in) lane.activations_in->begin(lane.shapes);
    }
    for (int m = 0; m < count; ++m) {
      for (Lane& lane : lanes) evaluate(lane, m);
    }
    take_loss_totals();
    return result;
  }

  void evaluate(Lane& lane, int m) {
    Tensor input;
    if (lane.previous != nullptr) input = lane.previous->outputs[0];
    if (lane.activations_in) input = timed([&] { return lane.activations_in->receive(m); });
    lane.outputs[0] = lane.stage().evaluate(lane.batches[static_cast<std::size_t>(m)], input);
    if (lane.activations_in) lane.activations_in->release(m);
    if (lane.activations_out) {
      // The stage's output is valid until its next pass only.
      lane.activations_out->send(m, lane.outputs[0]);
      timed([&] { lane.activations_out->reclaim(m); });
    }
  }

  void abort() noexcept {
    std::chrono::milliseconds limit = kDrainLimit;
    const auto drain = [&limit](auto& link) {
      if (link && !link->drain(limit)) limit = std::chrono::milliseconds(0);
    };
    for (Lane& lane : lanes) {
      drain(lane.activations_in);
      drain(lane.gradients_in);
      drain(lane.activations_out);
      drain(lane.gradients_out);
    }
  }

  Communicator& communicator;
  int num_micro_batches;
  std::vector<Lane>
      lanes;  // by (replica, stage): a replica's stage has its input when its turn comes
  ProcessProgram program;
  std::vector<bool> tells_listener;  // by instruction
  PipelineResult result;
};

PipelineExecutor::PipelineExecutor(Communicator& communicator, const Roster& roster,
                                   ScheduleKind kind, int num_micro_batches,
                                   const std::vector<HostedSlot>& hosted)
    : implementation_(std::make_unique<Implementation>(communicator, roster, kind,
                                                       num_micro_batches, hosted)) {}

PipelineExecutor::~PipelineExecutor() = default;

PipelineResult PipelineExecutor::run_step(const BatchSource& source, float gradient_scale) {
  return implementation_->run_step(source, gradient_scale);
}

PipelineResult PipelineExecutor::evaluate(const BatchSource& source, int num_micro_batches) {
  return implementation_->evaluate(source, num_micro_batches);
}

void PipelineExecutor::abort() noexcept {
  implementation_->abort();
}

}  // namespace chaski
