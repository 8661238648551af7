#include "app/plan/dry_run.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string_view>

#include "app/step/batch_tensors.h"
#include "app/step/hosted_model.h"
#include "app/step/step_runner.h"

namespace chaski {
namespace {

Work work_of(const std::vector<OpCount>& ops) {
  Work work;
  for (const OpCount& op : ops) {
    const std::string_view name = op.op;
    if (name.starts_with("gemm_")) {
      work.gemm_flops += op.flops;
    } else if (name.starts_with("moc_products_")) {
      work.channel_flops += op.flops;
    } else if (name == "attention_forward") {
      work.attention_forward_flops += op.flops;
    } else if (name == "attention_backward") {
      work.attention_backward_flops += op.flops;
    } else {
      work.traffic_bytes += op.bytes;
    }
  }
  return work;
}

std::int64_t micro_batches_of(const TrainConfig& config, const Roster& roster) {
  return roster.num_micro_batches(config.parallel.global_batch, config.parallel.micro_batch);
}

// A process that is not there, with what its run holds on the device.
class DryProcess {
 public:
  DryProcess(Device& device, const TrainConfig& config, const Roster& roster, int rank)
      : device_(device),
        membership_(
            std::make_unique<Communicator>(rank, static_cast<int>(roster.live_processes().size())),
            roster),
        model_(device, hosted_model_options(config, micro_batches_of(config, roster))) {
    model_.adopt(membership_);
    model_.initialize(0);
    for (const Slot slot : membership_.roster().slots_of(membership_.process())) {
      std::vector<BatchTensors>& batches = batches_[slot.replica];
      while (std::ssize(batches) < model_.options().micro_batches) {
        batches.emplace_back(device, config.parallel.micro_batch, config.data.sequence_length);
      }
    }
  }

  void run_step() {
    StepRunner runner(membership_, model_, 1.0);
    runner.run({}, [this](int replica, int m) {
      return batches_[replica][static_cast<std::size_t>(m)].micro_batch();
    });
  }
  void evaluate() {
    model_.executor().evaluate([this](int, int) { return full_pass(); }, 1);
  }

  // The passes of a micro-batch by themselves, with their work.
  void count_passes(Work& forward, Work& backward) {
    const MicroBatch batch = full_pass();
    for (const auto& hosted : model_.stages()) {
      Stage& stage = *hosted->model;
      const Buffer neighbour = device_.allocate(
          stage.parameters().types().compute,
          {batch.tokens.num_elements(), stage.config().hidden_size}, MemoryCategory::communication);
      device_.clear_op_counts();
      stage.forward(0, batch, neighbour.tensor(), 1.0f);
      forward += work_of(device_.op_counts());
      device_.clear_op_counts();
      stage.backward(0, batch, neighbour.tensor(), nullptr);
      backward += work_of(device_.op_counts());
    }
  }

  const Communicator& communicator() const { return membership_.communicator(); }
  const std::vector<std::unique_ptr<HostedStage>>& stages() { return model_.stages(); }

 private:
  MicroBatch full_pass() {
    const MicroBatch& whole = batches_.begin()->second.front().micro_batch();
    const std::int64_t rows = model_.passes().rows;
    return {whole.tokens.rows(0, rows), whole.targets.rows(0, rows), {}};
  }

  Device& device_;
  Membership membership_;
  HostedModel model_;
  std::map<int, std::vector<BatchTensors>> batches_;  // by replica
};

// Of its weights and of the optimizer's state, each tensor by itself.
std::int64_t saved_bytes_of(const HostedStage& stage) {
  std::int64_t bytes = 0;
  for (const Parameter& parameter : stage.model->parameters()) {
    bytes += charged_bytes(parameter.value.num_bytes());
  }
  for (const NamedTensor& state : stage.optimizer->state()) {
    bytes += charged_bytes(state.tensor.num_bytes());
  }
  return bytes;
}

}  // namespace

Work& Work::operator+=(const Work& other) {
  gemm_flops += other.gemm_flops;
  channel_flops += other.channel_flops;
  attention_forward_flops += other.attention_forward_flops;
  attention_backward_flops += other.attention_backward_flops;
  traffic_bytes += other.traffic_bytes;
  return *this;
}

DryRun dry_run(Device& model, const TrainConfig& config, const Roster& roster, int rank) {
  const auto device = Device::create_counting(model);
  DryProcess process(*device, config, roster, rank);
  DryRun result;
  device->clear_op_counts();
  process.run_step();
  result.ops = device->op_counts();
  result.step = work_of(result.ops);
  result.sent = process.communicator().sent();
  process.evaluate();
  result.memory = device->memory();
  result.parts = device->memory_parts();
  result.phases = device->workspace().phases();
  std::stable_sort(result.phases.begin(), result.phases.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  result.range = process.stages().front()->model->range();
  result.ffn_bytes_per_token = process.stages().front()->model->ffn_bytes_per_token();
  for (const auto& stage : process.stages()) {
    result.num_parameters += stage->model->parameters().num_elements();
    result.saved_bytes += saved_bytes_of(*stage);
  }
  process.count_passes(result.forward, result.backward);
  return result;
}

}  // namespace chaski
