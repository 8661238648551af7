#include "parallel/pipeline/executor.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "kernels/device/clock.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/cross_entropy.h"
#include "parallel/membership/message_tags.h"
#include "parallel/pipeline/activation_link.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

// Two tensors on their way keep the sender from waiting while the receiver computes with one.
constexpr int kMessageBuffers = 2;

// A hosted slot with its links to the neighbour stages. Where the neighbour is hosted by the same
// process the links are absent and the tensors are handed over here.
struct HostedPipeline {
  HostedSlot hosted;
  int in_flight = 1;
  int first_stash = 0;  // of the Stage's: this slot uses [first, first + in_flight)
  std::optional<ReceiveLink> activations_in;
  std::optional<SendLink> activations_out;
  std::optional<ReceiveLink> gradients_in;
  std::optional<SendLink> gradients_out;
  HostedPipeline* previous = nullptr;  // hosted here as well
  HostedPipeline* next = nullptr;
  // By micro-batch modulo in_flight.
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<Tensor> output_gradients;
  std::vector<Buffer> local_gradients;  // copies of what `next` hands back
  Tensor input_gradient;                // of the last backward pass
  std::vector<MicroBatch> batches;      // of the step
  std::vector<Shape> shapes;            // of the activations, by micro-batch

  std::size_t index(int m) const { return static_cast<std::size_t>(m % in_flight); }
  std::int64_t stash(int m) const { return first_stash + m % in_flight; }
  Stage& stage() const { return *hosted.stage; }
};

void check_hosted(const Roster& roster, int rank, const std::vector<HostedSlot>& hosted) {
  const std::vector<Slot> expected = roster.slots_of(roster.process_at(rank));
  if (expected.size() != hosted.size()) {
    throw std::invalid_argument(fmt::format("pipeline: process of rank {} hosts {} slots, {} given",
                                            rank, expected.size(), hosted.size()));
  }
  for (const HostedSlot& h : hosted) {
    if (std::find(expected.begin(), expected.end(), h.slot) == expected.end()) {
      throw std::invalid_argument(
          fmt::format("pipeline: rank {} does not host {}", rank, to_string(h.slot)));
    }
  }
}

}  // namespace

struct PipelineExecutor::Implementation {
  Implementation(Communicator& communicator, const Roster& roster, ScheduleKind kind,
                 int num_micro_batches, std::vector<HostedSlot> hosted)
      : communicator(communicator), num_micro_batches(num_micro_batches) {
    check_hosted(roster, communicator.rank(), hosted);
    std::sort(hosted.begin(), hosted.end(),
              [](const HostedSlot& a, const HostedSlot& b) { return a.slot < b.slot; });
    program = process_program(roster, kind, num_micro_batches, communicator.rank());
    pipelines.resize(hosted.size());
    for (std::size_t i = 0; i < hosted.size(); ++i) {
      pipelines[i].hosted = hosted[i];
      pipelines[i].in_flight =
          max_in_flight(kind, hosted[i].slot.stage, roster.num_stages(), num_micro_batches);
    }
    share_out_stashes();
    std::map<int, std::function<void()>> openers;  // by tag
    for (HostedPipeline& pipeline : pipelines) plan_links(pipeline, roster, openers);
    // In one order on all processes: nobody waits for one who waits for him.
    for (const auto& [tag, open] : openers) open();
    find_last_backward_passes();
  }

  void share_out_stashes() {
    std::map<const Stage*, int> taken;
    for (HostedPipeline& pipeline : pipelines) {
      pipeline.first_stash = taken[&pipeline.stage()];
      taken[&pipeline.stage()] += pipeline.in_flight;
    }
    for (const auto& [stage, needed] : taken) {
      if (needed <= stage->options().micro_batches_in_flight) continue;
      throw std::invalid_argument(
          fmt::format("pipeline: {} stashes of a stage are needed, it has {}", needed,
                      stage->options().micro_batches_in_flight));
    }
  }

  template <typename Wait>
  auto timed(const Wait& wait) {
    const auto start = Clock::now();
    struct Stop {
      const Clock::time_point& start;
      double& total;
      ~Stop() { total += seconds_since(start); }
    } stop{start, result.wait_seconds};
    return wait();
  }

  void plan_links(HostedPipeline& pipeline, const Roster& roster,
                  std::map<int, std::function<void()>>& openers) {
    const auto in_flight = static_cast<std::size_t>(pipeline.in_flight);
    pipeline.inputs.resize(in_flight);
    pipeline.outputs.resize(in_flight);
    pipeline.output_gradients.resize(in_flight);
    const StageOptions& options = pipeline.stage().options();
    const DType dtype = pipeline.stage().parameters().types().compute;
    const Shape largest{options.micro_batch * options.sequence_length,
                        pipeline.stage().config().hidden_size};
    Device& device = pipeline.stage().parameters().device();
    const auto plan = [&](auto& link, Slot neighbour, int tag, auto... buffers) {
      const LinkOptions ends{roster.rank_of(neighbour), tag, dtype, largest};
      openers[tag] = [this, &link, &device, ends, buffers...] {
        link.emplace(communicator, device, ends, buffers...);
      };
    };
    const Slot slot = pipeline.hosted.slot;
    if (const auto previous = roster.previous_stage(slot)) {
      pipeline.previous = pipeline_of(*previous);
      if (pipeline.previous == nullptr) {
        plan(pipeline.activations_in, *previous, activation_tag(roster, *previous),
             kMessageBuffers);
        plan(pipeline.gradients_out, *previous, gradient_tag(roster, slot), kMessageBuffers,
             kMessageBuffers);
      }
    }
    if (const auto next = roster.next_stage(slot)) {
      pipeline.next = pipeline_of(*next);
      if (pipeline.next == nullptr) {
        plan(pipeline.activations_out, *next, activation_tag(roster, slot), pipeline.in_flight, 0);
        plan(pipeline.gradients_in, *next, gradient_tag(roster, *next), kMessageBuffers);
      } else {
        for (int i = 0; i < pipeline.in_flight; ++i) {
          pipeline.local_gradients.push_back(
              device.allocate(dtype, largest, MemoryCategory::communication));
        }
      }
    }
  }

  HostedPipeline* pipeline_of(Slot slot) {
    for (HostedPipeline& pipeline : pipelines) {
      if (pipeline.hosted.slot == slot) return &pipeline;
    }
    return nullptr;
  }

  // Gradients of a Stage are final only in its last backward pass, which may be another slot's.
  void find_last_backward_passes() {
    std::vector<const Stage*> seen;
    tells_listener.assign(program.size(), false);
    for (std::size_t i = program.size(); i-- > 0;) {
      if (program[i].instruction.action != Action::backward) continue;
      const Stage* stage = pipeline_of(program[i].slot)->hosted.stage;
      if (std::find(seen.begin(), seen.end(), stage) != seen.end()) continue;
      seen.push_back(stage);
      tells_listener[i] = true;
    }
  }

  void fetch(HostedPipeline& pipeline, const BatchSource& source, int count) {
    pipeline.batches.clear();
    pipeline.shapes.clear();
    for (int m = 0; m < count; ++m) {
      const MicroBatch batch = source(pipeline.hosted.slot.replica, m);
      if (batch.tokens.empty()) break;
      pipeline.batches.push_back(batch);
      pipeline.shapes.push_back(
          {batch.tokens.num_elements(), pipeline.stage().config().hidden_size});
    }
  }

  void execute(std::size_t at, float gradient_scale) {
    const Instruction& instruction = program[at].instruction;
    HostedPipeline& pipeline = *pipeline_of(program[at].slot);
    const int m = instruction.micro_batch;
    switch (instruction.action) {
      case Action::receive_activation:
        pipeline.inputs[pipeline.index(m)] =
            pipeline.previous != nullptr
                ? pipeline.previous->outputs[pipeline.previous->index(m)]
                : timed([&] { return pipeline.activations_in->receive(m); });
        break;
      case Action::forward:
        if (pipeline.activations_out) timed([&] { pipeline.activations_out->reclaim(m); });
        pipeline.outputs[pipeline.index(m)] = pipeline.stage().forward(
            pipeline.stash(m), pipeline.batches[static_cast<std::size_t>(m)],
            pipeline.inputs[pipeline.index(m)], gradient_scale);
        if (pipeline.activations_in)
          pipeline.activations_in->release(m);  // the Stage keeps its own copy
        break;
      case Action::send_activation:
        if (pipeline.activations_out)
          pipeline.activations_out->send(m, pipeline.outputs[pipeline.index(m)]);
        break;
      case Action::receive_gradient:
        if (pipeline.gradients_in) {
          pipeline.output_gradients[pipeline.index(m)] =
              timed([&] { return pipeline.gradients_in->receive(m); });
        }
        break;
      case Action::backward:
        pipeline.input_gradient = pipeline.stage().backward(
            pipeline.stash(m), pipeline.batches[static_cast<std::size_t>(m)],
            pipeline.output_gradients[pipeline.index(m)],
            tells_listener[at] ? pipeline.hosted.listener : nullptr);
        if (pipeline.gradients_in) pipeline.gradients_in->release(m);
        break;
      case Action::send_gradient:
        if (pipeline.gradients_out) {
          timed([&] { pipeline.gradients_out->send(m, pipeline.input_gradient); });
        } else {
          hand_back(pipeline, m);
        }
        break;
    }
  }

  // The gradient goes to the pipeline of the previous stage, which may use it much later: a copy.
  static void hand_back(const HostedPipeline& pipeline, int m) {
    HostedPipeline& to = *pipeline.previous;
    const Buffer& buffer = to.local_gradients[to.index(m)];
    const Tensor target(buffer.tensor().device(), buffer.tensor().dtype(),
                        pipeline.input_gradient.shape(), buffer.tensor().raw());
    copy(pipeline.input_gradient, target);
    to.output_gradients[to.index(m)] = target;
  }

  // Adds what the pipelines' stages have seen since this was last called; several slots may share
  // one.
  void take_loss_totals() {
    for (HostedPipeline& pipeline : pipelines) {
      const LossTotals totals = pipeline.stage().take_loss_totals();
      result.loss_sum += totals.sum;
      result.num_targets += totals.num_targets;
    }
  }

  void begin_result() {
    take_loss_totals();  // of a step that was given up, perhaps by another executor
    result = {};
  }

  PipelineResult run_step(const BatchSource& source, float gradient_scale) {
    begin_result();
    for (HostedPipeline& pipeline : pipelines) {
      fetch(pipeline, source, num_micro_batches);
      if (pipeline.activations_in) pipeline.activations_in->begin(pipeline.shapes);
      if (pipeline.gradients_in) pipeline.gradients_in->begin(pipeline.shapes);
    }
    for (std::size_t i = 0; i < program.size(); ++i) execute(i, gradient_scale);
    for (HostedPipeline& pipeline : pipelines) {
      if (pipeline.activations_out) timed([&] { pipeline.activations_out->finish(); });
      if (pipeline.gradients_out) timed([&] { pipeline.gradients_out->finish(); });
    }
    take_loss_totals();
    return result;
  }

  PipelineResult evaluate(const BatchSource& source, int count) {
    begin_result();
    for (HostedPipeline& pipeline : pipelines) {
      fetch(pipeline, source, count);
      if (pipeline.activations_in) pipeline.activations_in->begin(pipeline.shapes);
    }
    for (int m = 0; m < count; ++m) {
      for (HostedPipeline& pipeline : pipelines) {
        if (m < std::ssize(pipeline.batches)) evaluate(pipeline, m);
      }
    }
    take_loss_totals();
    return result;
  }

  void evaluate(HostedPipeline& pipeline, int m) {
    Tensor input;
    if (pipeline.previous != nullptr) input = pipeline.previous->outputs[0];
    if (pipeline.activations_in) input = timed([&] { return pipeline.activations_in->receive(m); });
    pipeline.outputs[0] =
        pipeline.stage().evaluate(pipeline.batches[static_cast<std::size_t>(m)], input);
    if (pipeline.activations_in) pipeline.activations_in->release(m);
    if (pipeline.activations_out) {
      // The stage's output is valid until its next pass only.
      pipeline.activations_out->send(m, pipeline.outputs[0]);
      timed([&] { pipeline.activations_out->reclaim(m); });
    }
  }

  void abort() noexcept {
    const auto give_up = [](auto& link) {
      if (link) link->abort();
    };
    for (HostedPipeline& pipeline : pipelines) {
      give_up(pipeline.activations_in);
      give_up(pipeline.gradients_in);
      give_up(pipeline.activations_out);
      give_up(pipeline.gradients_out);
    }
  }

  Communicator& communicator;
  int num_micro_batches;
  std::vector<HostedPipeline>
      pipelines;  // by (replica, stage): a replica's stage has its input when its turn comes
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
