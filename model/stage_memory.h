#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/stage.h"

namespace chaski {

// Buffers of a stage that serve one purpose.
struct PlannedMemory {
  std::string kind;  // "weights", "gate and up projections", …
  MemoryCategory category = MemoryCategory::activations;
  std::int64_t bytes = 0;
};

// What the workspace holds at most during one part of a step.
struct WorkspacePhase {
  std::string name;  // "head and loss", …
  std::int64_t bytes = 0;
};

// The memory of a stage before it exists, as its Device will account for it: exact to the byte for
// weights, gradients and activations, and for the workspace once a step has run.
struct StageMemory {
  std::vector<PlannedMemory> parts;      // all categories but the workspace
  std::vector<WorkspacePhase> phases;    // largest first
  std::vector<std::int64_t> parameters;  // elements of each, in the order of the ParameterSet
  // Of what a block keeps of its FFN from its forward for its backward pass, norm scales apart.
  std::int64_t ffn_bytes_per_token = 0;
  // Whether full tiles of tokens compute with the kept channels alone (moc_products_pay).
  bool skips_channels = false;

  std::int64_t bytes(MemoryCategory category) const;
  // Of the workspace after a step: the largest phase.
  std::int64_t workspace_bytes() const;
  std::int64_t num_parameters() const;
};

// Plans Stage(device, config, range, options) on any device of the same kind and number of threads.
// Allocates no tensor; asks the ops for what they take of the workspace, for which libraries may
// prepare themselves. On a GPU that is only planned for (Device::create_planned_gpu) what cuDNN
// takes for attention is left out. Throws what the Stage's constructor throws.
StageMemory plan_stage_memory(Device& device, const LlamaConfig& config, const StageRange& range,
                              const StageOptions& options);

}  // namespace chaski
