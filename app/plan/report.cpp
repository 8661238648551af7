#include "app/plan/report.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>

#include "app/console/human_format.h"
#include "app/step/batch_tensors.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

// Processes that hold the same: of one stage, with or without the checkpoint's buffers.
struct RankGroup {
  int first = 0;
  int last = 0;

  std::string title() const {
    return first == last ? fmt::format("rank {}", first) : fmt::format("ranks {}-{}", first, last);
  }
};

std::vector<RankGroup> group_ranks(const std::vector<RankMemory>& ranks) {
  std::vector<RankGroup> groups;
  for (const RankMemory& rank : ranks) {
    const bool same = !groups.empty() && rank.slots.front().replica > 1;
    if (same) {
      groups.back().last = rank.rank;
    } else {
      groups.push_back({rank.rank, rank.rank});
    }
  }
  return groups;
}

std::string mebibytes(std::int64_t bytes) {
  constexpr std::int64_t kGibibyte = std::int64_t{1} << 30;
  if (bytes < 10 * kGibibyte) {
    return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
  }
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / kGibibyte);
}

void print_line(const std::string& name, const std::string& value) {
  fmt::print("{:<12}{}\n", name, value);
}

// Of one group of processes.
struct MemoryColumn {
  std::string title;
  std::vector<MemoryRow> rows;
};

// Stages have different rows: the union, in the order of their first appearance.
void print_rows(const char* heading, const std::vector<MemoryColumn>& columns) {
  fmt::print("\n{:<36}", heading);
  for (const MemoryColumn& column : columns) fmt::print("{:>14}", column.title);
  fmt::print("\n");
  std::vector<MemoryRow> rows;
  for (const MemoryColumn& column : columns) {
    auto place = rows.begin();
    for (const MemoryRow& row : column.rows) {
      const auto same = std::find_if(rows.begin(), rows.end(), [&](const MemoryRow& known) {
        return known.name == row.name && known.is_part == row.is_part;
      });
      place = same != rows.end() ? same + 1 : rows.insert(place, row) + 1;
    }
  }
  for (const MemoryRow& row : rows) {
    fmt::print("{:<36}", (row.is_part ? "    " : "  ") + row.name);
    for (const MemoryColumn& column : columns) {
      const auto found =
          std::find_if(column.rows.begin(), column.rows.end(), [&](const MemoryRow& other) {
            return other.name == row.name && other.is_part == row.is_part;
          });
      fmt::print("{:>14}", found == column.rows.end() ? "-" : mebibytes(found->bytes));
    }
    fmt::print("\n");
  }
}

void print_memory(const TrainingPlan& plan) {
  std::vector<MemoryColumn> device;
  std::vector<MemoryColumn> host;
  for (const RankGroup& group : group_ranks(plan.ranks)) {
    const RankMemory& rank = plan.ranks[static_cast<std::size_t>(group.first)];
    device.push_back({group.title(), memory_rows(rank)});
    device.back().rows.push_back({"total", rank.on_gpu ? rank.device_total() : rank.total()});
    host.push_back(
        {group.title(), rank.on_gpu ? host_memory_rows(rank) : std::vector<MemoryRow>()});
    if (rank.on_gpu) host.back().rows.push_back({"total", rank.total()});
    (rank.on_gpu ? host : device)
        .back()
        .rows.push_back({"and while a slow disk takes a save", rank.checkpoint_copy});
  }
  print_rows(plan.on_gpu() ? "memory of a process's GPU" : "memory of a process", device);
  if (plan.on_gpu()) print_rows("memory of its host", host);
}

void print_gpu(const TrainingPlan& plan, const PlanningMachine& machine) {
  if (!plan.on_gpu() || !machine.gpu) return;
  const PlannedGpu& gpu = *machine.gpu;
  std::string line = gpu.device->describe();
  if (gpu.memory_bytes > 0) {
    const std::string needed =
        fmt::format("{} of {}{} needed", format_bytes(plan.largest_process_bytes()),
                    format_bytes(gpu.memory_bytes), gpu.device->is_counting() ? "" : " free");
    line += fits_gpu(plan, machine) ? ": " + needed : ": DOES NOT FIT: " + needed;
  }
  if (gpu.device->is_counting() && gpu.memory_bytes == 0)
    line += "; --device-memory SIZE says whether the run fits";
  print_line("GPU", line);
  if (gpu.device->is_counting()) {
    print_line("",
               "besides, what CUDA itself takes (some hundred MiB) and cuDNN for attention "
               "are known on a GPU only");
  }
}

void print_fit(const TrainingPlan& plan, const MachineMemory& memory) {
  if (!memory.known()) return;
  const std::string swap =
      memory.swap_bytes > 0 ? " and " + format_bytes(memory.swap_bytes) + " of swap" : "";
  const std::string needed =
      fmt::format("{} needed by {}, of {} {}{}", format_bytes(plan.needed_bytes()),
                  plan.ranks.size() == 1 ? "the process" : "all processes",
                  format_bytes(memory.bytes), memory.whose(), swap);
  print_line("machine", fits(plan, memory)
                            ? needed
                            : "DOES NOT FIT: " + needed + "; `chaski train` will refuse it");
}

void print_links(const TrainingPlan& plan) {
  if (plan.links.empty()) return;
  fmt::print("\n");
  constexpr std::size_t kMostLines = 16;
  for (std::size_t i = 0; i < std::min(plan.links.size(), kMostLines); ++i) {
    const Link& link = plan.links[i];
    print_line(i == 0 ? "links" : "",
               fmt::format("rank {} to {}: {} of {} a step", link.from, link.to,
                           format_bytes(link.bytes), name_of(link.purpose)));
  }
  if (plan.links.size() > kMostLines) {
    print_line("", fmt::format("and {} more (--json lists them)", plan.links.size() - kMostLines));
  }
}

std::string rates_of(const TrainingPlan& plan, const MachineRates& rates) {
  return plan.on_gpu() ? "a GPU" : format_number_of(rates.threads, "thread");
}

void print_time(const TrainingPlan& plan, const PlanningMachine& machine) {
  const Work work = plan.work();
  print_line("step", fmt::format("{} tokens, {:.4g} GFLOP in products, {:.4g} in attention; {} of "
                                 "memory traffic outside them",
                                 plan.tokens_per_step(), 1e-9 * work.product_flops(),
                                 1e-9 * work.attention_flops(),
                                 format_bytes(static_cast<std::int64_t>(work.traffic_bytes))));
  if (!plan.time || !machine.rates) return;
  const MachineRates& rates = *machine.rates;
  const StepTime& time = *plan.time;
  const std::string channels =
      work.channel_flops == 0.0
          ? ""
          : fmt::format(", of kept channels alone {:.0f}", 1e-9 * rates.channels);
  print_line(machine.gpu && machine.gpu->device->is_counting() ? "given" : "measured",
             fmt::format("{}: GEMM ceiling {:.0f} GFLOP/s, this model's products {:.0f}{}, "
                         "attention {:.0f} and {:.0f}, copy {:.1f} GB/s",
                         rates_of(plan, rates), 1e-9 * rates.gemm_ceiling, 1e-9 * rates.gemm,
                         channels, 1e-9 * rates.attention_forward, 1e-9 * rates.attention_backward,
                         1e-9 * rates.copy));
  print_line(
      "time",
      fmt::format("{:.3f} s a step, at least {:.3f} at the ceilings (products {:.3f}, "
                  "attention {:.3f}, memory {:.3f}, gradient reduction {:.3f}, idle in the "
                  "pipeline {:.3f})",
                  time.seconds, time.floor_seconds, time.gemm_seconds, time.attention_seconds,
                  time.traffic_seconds, time.reduction_seconds, time.idle_seconds));
  if (plan.on_gpu() && plan.ranks.size() > 1) {
    print_line("", "without what goes from GPU to GPU, whose links are not known");
  }
  const std::int64_t steps = plan.config.schedule.steps;
  const std::string whole =
      steps == 0 ? "schedule.steps is not given"
                 : fmt::format("the schedule of {} takes {}", format_number_of(steps, "step"),
                               format_duration(time.seconds * static_cast<double>(steps)));
  print_line("schedule", fmt::format("{:.0f} tokens/s; {}", plan.tokens_per_second(), whole));
}

void print_neighbours(const TrainingPlan& plan, const std::vector<WhatIf>& neighbours) {
  fmt::print("\n{:<36}{:>14}{:>14}{:>12}{:>12}\n", "what if", "largest", "all", "s/step",
             "tokens/s");
  const auto print_row = [](const std::string& change, const TrainingPlan& other) {
    const bool timed = other.time.has_value();
    fmt::print("{:<36}{:>14}{:>14}{:>12}{:>12}\n", "  " + change,
               mebibytes(other.largest_process_bytes()), mebibytes(other.all_processes_bytes()),
               timed ? fmt::format("{:.3f}", other.time->seconds) : "-",
               timed ? fmt::format("{:.0f}", other.tokens_per_second()) : "-");
  };
  print_row("as configured", plan);
  for (const WhatIf& neighbour : neighbours) print_row(neighbour.change, neighbour.plan);
}

// Of the process that takes most.
const RankMemory& largest_rank(const TrainingPlan& plan) {
  return *std::max_element(
      plan.ranks.begin(), plan.ranks.end(),
      [](const RankMemory& a, const RankMemory& b) { return a.device_total() < b.device_total(); });
}

void print_ffn_choices(const TrainingPlan& plan, const std::vector<FfnChoice>& choices) {
  fmt::print("\n{:<62}{:>14}{:>14}{:>14}{:>14}\n", "feed-forward network, largest process",
             "token, layer", "activations", "workspace", "accounted");
  for (const FfnChoice& choice : choices) {
    const RankMemory& rank = largest_rank(choice.plan);
    const bool configured = choice.plan.config.model.recompute == plan.config.model.recompute &&
                            choice.plan.config.model.llama == plan.config.model.llama;
    fmt::print("{:<62}{:>14}{:>14}{:>14}{:>14}\n", (configured ? "* " : "  ") + choice.name,
               format_bytes(choice.bytes_per_token),
               mebibytes(rank.device_bytes(MemoryCategory::activations)),
               mebibytes(rank.device_bytes(MemoryCategory::workspace)),
               mebibytes(rank.device_total()));
  }
  // The kind that is configured, or that a dense model could have.
  const auto with_moc = std::find_if(choices.begin(), choices.end(), [](const FfnChoice& choice) {
    return choice.plan.config.model.llama.moc.has_value();
  });
  if (with_moc == choices.end()) return;
  const ModelConfig& model = with_moc->plan.config.model;
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    const bool used = plan.config.model.llama.moc.has_value() &&
                      index == moc_shape(model.llama, model.moc_index()).index;
    fmt::print("{} {} of a token and layer with model.moc.index = \"{}\"\n",
               used ? "* indices take" : "  indices would take",
               format_bytes(moc_shape(model.llama, index).index_bytes()), name_of(index));
  }
}

Json ffn_json(const FfnChoice& choice) {
  const RankMemory& rank = largest_rank(choice.plan);
  return {{"name", choice.name},
          {"ffn", choice.plan.config.model.llama.moc ? "moc" : "swiglu"},
          {"recompute", name_of(choice.plan.config.model.recompute)},
          {"bytes_per_token_and_layer", choice.bytes_per_token},
          {"activation_bytes", rank.device_bytes(MemoryCategory::activations)},
          {"workspace_bytes", rank.device_bytes(MemoryCategory::workspace)},
          {"accounted_bytes", rank.device_total()}};
}

Json rank_json(const RankMemory& rank) {
  Json memory;
  Json activations;
  for (const MemoryRow& row : memory_rows(rank)) {
    (row.is_part ? activations : memory)[row.name] = row.bytes;
  }
  memory["total"] = rank.on_gpu ? rank.device_total() : rank.total();
  memory["checkpoint copy, at most"] = rank.checkpoint_copy;
  Json phases;
  for (const WorkspacePhase& phase : rank.dry.phases) phases[phase.name] = phase.bytes;
  Json host;
  if (rank.on_gpu) {
    for (const MemoryRow& row : host_memory_rows(rank)) host[row.name] = row.bytes;
    host["total"] = rank.total();
  }
  const Work& work = rank.dry.step;
  return {{"rank", rank.rank},
          {"replica", rank.slots.front().replica},
          {"stage", rank.slots.front().stage},
          {"first_layer", rank.dry.range.first_layer},
          {"num_layers", rank.dry.range.num_layers},
          {"parameters", rank.dry.num_parameters},
          {"memory_bytes", memory},
          {"host_memory_bytes", host},
          {"activation_bytes", activations},
          {"workspace_phase_bytes", phases},
          {"flops_per_step", work.flops()},
          {"traffic_bytes_per_step", work.traffic_bytes}};
}

Json time_json(const TrainingPlan& plan) {
  const StepTime& time = *plan.time;
  const std::int64_t steps = plan.config.schedule.steps;
  return {
      {"seconds", time.seconds},
      {"floor_seconds", time.floor_seconds},
      {"gemm_seconds", time.gemm_seconds},
      {"attention_seconds", time.attention_seconds},
      {"traffic_seconds", time.traffic_seconds},
      {"reduction_seconds", time.reduction_seconds},
      {"idle_seconds", time.idle_seconds},
      {"tokens_per_second", plan.tokens_per_second()},
      {"schedule_seconds", steps == 0 ? Json() : Json(time.seconds * static_cast<double>(steps))}};
}

Json rates_json(const MachineRates& rates) {
  return {{"threads", rates.threads},
          {"gemm_ceiling_gflops", 1e-9 * rates.gemm_ceiling},
          {"gemm_gflops", 1e-9 * rates.gemm},
          {"kept_channel_gflops", 1e-9 * rates.channels},
          {"attention_forward_gflops", 1e-9 * rates.attention_forward},
          {"attention_backward_gflops", 1e-9 * rates.attention_backward},
          {"copy_bytes_per_second", rates.copy}};
}

}  // namespace

std::vector<MemoryRow> memory_rows(const RankMemory& rank) {
  std::vector<MemoryRow> rows;
  for (const MemoryCategory category :
       {MemoryCategory::weights, MemoryCategory::gradients, MemoryCategory::optimizer,
        MemoryCategory::activations, MemoryCategory::workspace, MemoryCategory::communication}) {
    if (category != MemoryCategory::activations) {
      rows.push_back({name_of(category), rank.device_bytes(category)});
      continue;
    }
    rows.push_back({name_of(category), rank.device_bytes(category) - rank.token_batches});
    for (const MemoryPart& part : rank.dry.parts) {
      const bool shown = part.bytes > 0 && std::strcmp(part.purpose, kTokenBatches) != 0;
      if (part.category == category && shown) rows.push_back({part.purpose, part.bytes, true});
    }
  }
  if (rank.on_gpu) {
    rows.push_back({"token batches", rank.token_batches});
    return rows;
  }
  rows.push_back({"token batches", rank.token_batches + rank.prefetch});
  rows.push_back({"checkpoint buffer", rank.checkpoint_buffer});
  rows.push_back({"token file pages", rank.token_pages});
  rows.push_back({"process base", rank.process_base});
  return rows;
}

std::vector<MemoryRow> host_memory_rows(const RankMemory& rank) {
  return {{"prefetched batches", rank.prefetch},
          {"pinned buffers", rank.pinned},
          {"checkpoint buffer", rank.checkpoint_buffer},
          {"token file pages", rank.token_pages},
          {"process base", rank.process_base}};
}

nlohmann::ordered_json plan_json(const TrainingPlan& plan, const PlanningMachine& machine,
                                 const std::vector<WhatIf>& neighbours,
                                 const std::vector<FfnChoice>& ffn_choices) {
  Json report;
  const Work work = plan.work();
  report["parameters"] = plan.config.model.llama.num_parameters();
  report["processes"] = plan.ranks.size();
  report["threads_per_process"] = plan.threads;
  report["replicas"] = plan.layout.num_replicas;
  report["stages"] = plan.layout.num_stages;
  report["micro_batches"] = plan.layout.micro_batches;
  report["micro_batch"] = plan.config.parallel.micro_batch;
  report["sequence_length"] = plan.config.data.sequence_length;
  report["tokens_per_step"] = plan.tokens_per_step();
  for (const RankMemory& rank : plan.ranks) report["ranks"].push_back(rank_json(rank));
  report["links"] = Json::array();
  for (const Link& link : plan.links) {
    report["links"].push_back({{"from", link.from},
                               {"to", link.to},
                               {"purpose", name_of(link.purpose)},
                               {"bytes_per_step", link.bytes}});
  }
  report["machine_memory_bytes"] = machine.memory.bytes;
  report["machine_swap_bytes"] = machine.memory.swap_bytes;
  report["needed_bytes"] = plan.needed_bytes();
  report["fits"] = fits(plan, machine.memory) && fits_gpu(plan, machine);
  report["backend"] = plan.on_gpu() ? "cuda" : "cpu";
  report["precision"] = name_of(precision_of(plan.config));
  if (machine.gpu) {
    report["gpu"] = machine.gpu->device->describe();
    report["gpu_memory_bytes"] = machine.gpu->memory_bytes;
  }
  if (!machine.missing_data.empty()) report["missing_data"] = machine.missing_data;
  report["flops_per_step"] = work.flops();
  report["traffic_bytes_per_step"] = work.traffic_bytes;
  const bool given = machine.gpu && machine.gpu->device->is_counting();
  if (machine.rates) {
    report[given ? "given" : "measured"] = rates_json(*machine.rates);
    if (!given) {
      report["measured"]["gemm_library"] =
          gemm_library(plan.on_gpu() ? Backend::cuda : Backend::cpu);
    }
  }
  if (plan.time) report["step"] = time_json(plan);
  report["what_if"] = Json::array();
  for (const WhatIf& neighbour : neighbours) {
    Json entry{{"change", neighbour.change},
               {"processes", neighbour.plan.ranks.size()},
               {"largest_process_bytes", neighbour.plan.largest_process_bytes()},
               {"all_processes_bytes", neighbour.plan.all_processes_bytes()}};
    if (neighbour.plan.time) {
      entry["seconds"] = neighbour.plan.time->seconds;
      entry["tokens_per_second"] = neighbour.plan.tokens_per_second();
    }
    report["what_if"].push_back(entry);
  }
  for (const FfnChoice& choice : ffn_choices) report["ffn_choices"].push_back(ffn_json(choice));
  return report;
}

void print_plan(const TrainingPlan& plan, const PlanningMachine& machine,
                const std::vector<WhatIf>& neighbours, const std::vector<FfnChoice>& ffn_choices) {
  const LlamaConfig& model = plan.config.model.llama;
  print_line("model", fmt::format("{} parameters: {}, hidden {}, {}, vocabulary {}",
                                  format_count(static_cast<double>(model.num_parameters())),
                                  format_number_of(model.num_layers, "layer"), model.hidden_size,
                                  model.describe_ffn(), model.vocab_size));
  print_line(
      "layout",
      fmt::format("{} x {}, {} a process; {} of {} x {} tokens each",
                  format_number_of(plan.layout.num_replicas, "replica"),
                  format_number_of(plan.layout.num_stages, "stage"),
                  format_number_of(plan.threads, "thread"),
                  format_number_of(plan.layout.micro_batches, "micro-batch", "micro-batches"),
                  plan.config.parallel.micro_batch, plan.config.data.sequence_length));
  print_line("precision", name_of(precision_of(plan.config)));
  if (!machine.missing_data.empty()) {
    print_line("data", machine.missing_data + "; planned without");
  }
  print_time(plan, machine);
  print_memory(plan);
  fmt::print("\n");
  print_gpu(plan, machine);
  print_fit(plan, machine.memory);
  print_line("workspace",
             fmt::format("most is in use in: {}", plan.ranks.front().dry.phases.front().name));
  print_links(plan);
  print_neighbours(plan, neighbours);
  print_ffn_choices(plan, ffn_choices);
}

}  // namespace chaski
