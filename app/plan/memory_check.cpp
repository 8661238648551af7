#include "app/plan/memory_check.h"

#include <algorithm>
#include <fmt/core.h>
#include <stdexcept>

#include "app/console/human_format.h"
#include "app/job/job.h"
#include "app/job/process_memory.h"
#include "app/plan/memory.h"

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

double parameters_of(const LlamaConfig& model, const StageRange& range) {
  const double table =
      static_cast<double>(model.vocab_size) * static_cast<double>(model.hidden_size);
  double parameters =
      static_cast<double>(range.num_layers) * static_cast<double>(model.num_layer_parameters());
  if (range.has_embedding) parameters += table;
  if (range.has_head) parameters += static_cast<double>(model.hidden_size);
  if (range.has_head && !model.tie_embeddings) parameters += table;
  return parameters;
}

}  // namespace

double least_bytes_of_process(const TrainConfig& config, const RunLayout& layout, int stage) {
  const LlamaConfig& model = config.model.llama;
  const auto sequence = static_cast<double>(config.data.sequence_length);
  // Values, gradients and two moments.
  const double state =
      4.0 * sizeof(float) * parameters_of(model, stage_range(model, stage, layout.num_stages));
  // Tokens and targets.
  const double tokens = 2.0 * sizeof(std::int32_t) * static_cast<double>(layout.micro_batches) *
                        static_cast<double>(config.parallel.micro_batch) * sequence;
  const double activations = sizeof(float) * static_cast<double>(model.hidden_size) *
                             static_cast<double>(passes_of(config).rows) * sequence;
  return state + tokens + activations;
}

void check_memory_of_run(const TrainConfig& config, Communicator& communicator, int threads,
                         const std::string& hint, const MachineMemory& machine) {
  const std::vector<int> ranks = share_of_host(communicator).ranks;
  if (!machine.known()) return;
  const auto processes = static_cast<int>(ranks.size());
  const RunLayout layout = resolve_layout(config, communicator.size());
  // The plan counts in integers, which sizes that cannot be meant would overflow.
  const Roster roster = Roster::initial(static_cast<int>(layout.num_replicas),
                                        static_cast<int>(layout.num_stages), communicator.size());
  double least = 0.0;
  for (const int rank : ranks) {
    for (const Slot slot : roster.slots_of(roster.process_at(rank))) {
      least += least_bytes_of_process(config, layout, slot.stage);
    }
  }
  require(least, "at least ", processes, machine, hint);
  const auto device = Device::create_counting(Backend::cpu, threads);
  const std::vector<RankMemory> plan =
      plan_memory(*device, config, communicator.size(),
                  {.process_base = resident_bytes(), .token_file_bytes = 0});
  double needed = 0.0;
  for (const int rank : ranks) {
    needed += static_cast<double>(plan[static_cast<std::size_t>(rank)].total());
  }
  require(needed, "", processes, machine, hint);
}

}  // namespace chaski
