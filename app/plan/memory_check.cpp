#include "app/plan/memory_check.h"

#include <algorithm>
#include <fmt/core.h>
#include <stdexcept>
#include <vector>

#include "app/console/human_format.h"
#include "app/job/job.h"
#include "app/job/process_memory.h"
#include "app/plan/memory.h"
#include "model/huggingface.h"
#include "optim/factory.h"

namespace chaski {
namespace {

void require(double needed, const char* at_least, int processes, const MachineMemory& machine,
             const std::string& hint) {
  const double there = static_cast<double>(machine.bytes) + static_cast<double>(machine.swap_bytes);
  if (needed <= there) return;
  // Beyond what a 64-bit number holds it is all the same.
  const auto bytes = static_cast<std::int64_t>(std::min(needed, 9e18));
  const std::string swap =
      machine.swap_bytes > 0 ? " and " + format_bytes(machine.swap_bytes) + " of swap" : "";
  throw std::invalid_argument(
      fmt::format("{} {} {}{} of memory, but {} {}{}\nhint: {}",
                  processes == 1 ? "the run" : fmt::format("the {} processes here", processes),
                  processes == 1 ? "needs" : "need", at_least, format_bytes(bytes),
                  machine.limited ? "its control group allows" : "this machine has",
                  format_bytes(machine.bytes), swap, hint));
}

std::vector<ParameterCount> parameters_of(const LlamaConfig& model, const StageRange& range) {
  // All blocks have the same.
  LlamaConfig of_one_block = model;
  of_one_block.num_layers = 1;
  std::vector<ParameterCount> parameters;
  for (const WeightShape& weight : huggingface_weights(of_one_block)) {
    const bool here =
        weight.layer >= 0 ||
        (weight.kind == ParameterKind::embedding ? range.has_embedding : range.has_head);
    const std::int64_t copies = weight.layer >= 0 ? range.num_layers : 1;
    if (here) parameters.push_back({weight.kind, weight.shape, static_cast<double>(copies)});
  }
  return parameters;
}

}  // namespace

double least_bytes_of_process(const TrainConfig& config, const RunLayout& layout, int stage) {
  const LlamaConfig& model = config.model.llama;
  const auto sequence = static_cast<double>(config.data.sequence_length);
  const TensorTypes types = types_of(precision_of(config));
  const std::vector<ParameterCount> parameters =
      parameters_of(model, stage_range(model, stage, layout.num_stages));
  double state = optimizer_state_bytes(config.optimizer_options(), parameters, types);
  for (const ParameterCount& parameter : parameters) {
    state += static_cast<double>(size_of(types.weights) + size_of(types.gradients)) *
             parameter.num_elements();
  }
  // Tokens and targets.
  const double tokens = 2.0 * sizeof(std::int32_t) * static_cast<double>(layout.micro_batches) *
                        static_cast<double>(config.parallel.micro_batch) * sequence;
  const double activations = sizeof(float) * static_cast<double>(model.hidden_size) *
                             static_cast<double>(passes_of(config).rows) * sequence;
  return state + tokens + activations;
}

void check_memory_of_run(const TrainConfig& config, const Membership& membership, int threads,
                         const std::string& hint, const MachineMemory& machine) {
  const std::vector<int> ranks = share_of_host(membership.communicator()).ranks;
  if (!machine.known()) return;
  const auto processes = static_cast<int>(ranks.size());
  const Roster& roster = membership.roster();
  const RunLayout layout{.num_replicas = roster.num_replicas(),
                         .num_stages = roster.num_stages(),
                         .micro_batches = roster.num_micro_batches(config.parallel.global_batch,
                                                                   config.parallel.micro_batch)};
  // The plan counts in integers, which sizes that cannot be meant would overflow.
  double least = 0.0;
  for (const int rank : ranks) {
    for (const Slot slot : roster.slots_of(roster.process_at(rank))) {
      least += least_bytes_of_process(config, layout, slot.stage);
    }
  }
  require(least, "at least ", processes, machine, hint);
  const auto device = Device::create_counting(Backend::cpu, threads);
  const std::vector<RankMemory> plan = plan_memory(
      *device, config, roster, {.process_base = resident_bytes(), .token_file_bytes = 0});
  double needed = 0.0;
  for (const int rank : ranks) {
    needed += static_cast<double>(plan[static_cast<std::size_t>(rank)].total());
  }
  require(needed, "", processes, machine, hint);
}

}  // namespace chaski
