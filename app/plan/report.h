#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "app/plan/plan.h"

namespace chaski {

nlohmann::ordered_json plan_json(const TrainingPlan& plan, const PlanningMachine& machine,
                                 const std::vector<WhatIf>& neighbours,
                                 const std::vector<FfnChoice>& ffn_choices);

// The same for people, on standard output.
void print_plan(const TrainingPlan& plan, const PlanningMachine& machine,
                const std::vector<WhatIf>& neighbours, const std::vector<FfnChoice>& ffn_choices);

// One row of a process's memory: a category, or (indented) a kind of it.
struct MemoryRow {
  std::string name;
  std::int64_t bytes = 0;
  bool is_part = false;  // of the category above it
};
// All rows of a process on a CPU; those that are no part sum up to total(). Of one on a GPU, what
// lies there, up to device_total(), and what lies in its host's memory, up to total().
std::vector<MemoryRow> memory_rows(const RankMemory& rank);
std::vector<MemoryRow> host_memory_rows(const RankMemory& rank);  // of a process on a GPU

}  // namespace chaski
