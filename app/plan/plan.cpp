#include "app/plan/plan.h"

#include <algorithm>
#include <cstdlib>
#include <fmt/core.h>
#include <map>
#include <stdexcept>
#include <tuple>

#include "app/step/membership.h"
#include "parallel/membership/message_tags.h"

namespace chaski {
namespace {

struct Neighbour {
  std::string change;
  TrainConfig config;
  int num_processes;
};

std::vector<Neighbour> neighbours_of(const TrainConfig& config, int num_processes) {
  std::vector<Neighbour> neighbours;
  // `change` changes the copy that it is given, and says how.
  const auto add = [&](const auto& change) {
    Neighbour neighbour{"", config, num_processes};
    neighbour.change = change(neighbour.config, neighbour.num_processes);
    neighbours.push_back(std::move(neighbour));
  };
  add([](TrainConfig& other, int&) {
    other.parallel.micro_batch *= 2;
    other.parallel.global_batch *= 2;
    return fmt::format("micro_batch {}, global_batch {}", other.parallel.micro_batch,
                       other.parallel.global_batch);
  });
  add([](TrainConfig& other, int&) {
    other.parallel.global_batch *= 2;
    return fmt::format("global_batch {}", other.parallel.global_batch);
  });
  add([](TrainConfig& other, int&) {
    const std::int64_t length = other.data.sequence_length *= 2;
    std::int64_t& positions = other.model.llama.max_position_embeddings;
    positions = std::max(positions, length);
    return fmt::format("sequence_length {}", length);
  });
  add([](TrainConfig& other, int&) {
    Recompute& recompute = other.model.recompute;
    recompute = recompute == Recompute::block ? Recompute::elementwise : Recompute::block;
    return fmt::format("recompute \"{}\"", name_of(recompute));
  });
  // The batch grows along, so that each process has as much to do.
  add([](TrainConfig& other, int& processes) {
    processes *= 2;
    other.parallel.data *= 2;
    other.parallel.global_batch *= 2;
    return fmt::format("{} processes, global_batch {}", processes, other.parallel.global_batch);
  });
  add([](TrainConfig& other, int& processes) {
    processes *= 2;
    other.parallel.pipeline *= 2;
    return fmt::format("{} processes, pipeline {}", processes, other.parallel.pipeline);
  });
  if (config.checkpoint.async) {
    add([](TrainConfig& other, int&) {
      other.checkpoint.async = false;
      return "checkpoint.async false";
    });
  }
  return neighbours;
}

}  // namespace

const char* name_of(LinkPurpose purpose) {
  return purpose == LinkPurpose::gradients ? "gradients" : "pipeline";
}

double TrainingPlan::tokens_per_second() const {
  return time ? static_cast<double>(tokens_per_step()) / time->seconds : 0.0;
}

std::int64_t TrainingPlan::largest_process_bytes() const {
  std::int64_t largest = 0;
  for (const RankMemory& rank : ranks) {
    largest = std::max(largest, rank.on_gpu ? rank.device_total() : rank.total());
  }
  return largest;
}

std::int64_t TrainingPlan::all_processes_bytes() const {
  std::int64_t total = 0;
  for (const RankMemory& rank : ranks) total += rank.on_gpu ? rank.device_total() : rank.total();
  return total;
}

std::int64_t TrainingPlan::needed_bytes() const {
  std::int64_t total = 0;
  for (const RankMemory& rank : ranks) total += rank.total() - rank.token_pages;
  return total;
}

bool fits_gpu(const TrainingPlan& plan, const PlanningMachine& machine) {
  if (!plan.on_gpu() || !machine.gpu || machine.gpu->memory_bytes == 0) return true;
  return plan.largest_process_bytes() <= machine.gpu->memory_bytes;
}

bool fits(const TrainingPlan& plan, const MachineMemory& memory) {
  return !memory.known() || plan.needed_bytes() <= memory.bytes + memory.swap_bytes;
}

Work TrainingPlan::work() const {
  Work total;
  for (const RankMemory& rank : ranks) total += rank.dry.step;
  return total;
}

int planned_threads(const TrainConfig& config, int num_processes, int cores) {
  if (config.run.threads > 0) return static_cast<int>(config.run.threads);
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return cores;
  return std::max(1, cores / num_processes);
}

namespace {

// Like those of the run's processes.
std::shared_ptr<Device> device_of(const TrainingPlan& plan, const PlanningMachine& machine) {
  if (plan.on_gpu()) return machine.gpu.value().device;
  return Device::create_counting(Backend::cpu, plan.threads);
}

TrainingPlan plan_without_links(const TrainConfig& config, int num_processes,
                                const PlanningMachine& machine) {
  TrainingPlan plan;
  plan.config = config;
  plan.layout = resolve_layout(config, num_processes);
  plan.threads = planned_threads(config, num_processes, machine.cores);
  plan.ranks = plan_memory(*device_of(plan, machine), config, initial_roster(config, num_processes),
                           machine.surroundings);
  if (machine.rates) plan.time = predict_step(*machine.rates, config, plan.ranks, plan.threads);
  return plan;
}

std::vector<Link> plan_links(Device& model, const TrainConfig& config, const Roster& roster) {
  const auto num_processes = static_cast<int>(roster.live_processes().size());
  if (num_processes == 1) return {};
  std::map<std::tuple<int, int, LinkPurpose>, std::int64_t> bytes;
  for (int rank = 0; rank < num_processes; ++rank) {
    for (const Communicator::Sent& sent : dry_run(model, config, roster, rank).sent) {
      const LinkPurpose purpose =
          is_pipeline_tag(sent.tag) ? LinkPurpose::pipeline : LinkPurpose::gradients;
      bytes[{rank, sent.to, purpose}] += sent.bytes;
    }
  }
  std::vector<Link> links;
  for (const auto& [key, sent] : bytes) {
    const auto& [from, to, purpose] = key;
    links.push_back({from, to, purpose, sent});
  }
  return links;
}

}  // namespace

TrainingPlan make_plan(const TrainConfig& config, int num_processes,
                       const PlanningMachine& machine) {
  TrainingPlan plan = plan_without_links(config, num_processes, machine);
  plan.links = plan_links(*device_of(plan, machine), config, initial_roster(config, num_processes));
  return plan;
}

std::vector<WhatIf> plan_neighbours(const TrainingPlan& plan, const PlanningMachine& machine) {
  std::vector<WhatIf> result;
  for (const Neighbour& neighbour :
       neighbours_of(plan.config, static_cast<int>(plan.ranks.size()))) {
    try {
      result.push_back({neighbour.change,
                        plan_without_links(neighbour.config, neighbour.num_processes, machine)});
    } catch (const std::invalid_argument&) {
      // Not every layout is possible: too few layers for the stages, a tied head, …
    }
  }
  return result;
}

std::vector<FfnChoice> plan_ffn_choices(const TrainingPlan& plan, const PlanningMachine& machine) {
  PlanningMachine without_rates = machine;
  without_rates.rates.reset();
  std::vector<FfnChoice> choices;
  for (const bool moc : {false, true}) {
    for (const Recompute recompute : {Recompute::none, Recompute::elementwise, Recompute::block}) {
      TrainConfig config = plan.config;
      LlamaConfig& model = config.model.llama;
      if (!moc) model.moc.reset();
      if (moc && !model.moc) model.moc.emplace();
      try {
        model.resolve();
      } catch (const std::invalid_argument&) {
        continue;  // wider than MoC can be
      }
      config.model.ffn = moc ? FeedForwardKind::moc : FeedForwardKind::swiglu;
      config.model.recompute = recompute;
      FfnChoice choice;
      choice.name = fmt::format("{}, recompute {}", model.describe_ffn(), name_of(recompute));
      choice.plan = plan_without_links(config, static_cast<int>(plan.ranks.size()), without_rates);
      choice.bytes_per_token = choice.plan.ranks.front().dry.ffn_bytes_per_token;
      choices.push_back(std::move(choice));
    }
  }
  return choices;
}

}  // namespace chaski
