#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"
#include "fault/checkpoint_metadata.h"
#include "kernels/device.h"
#include "model/stage.h"

namespace chaski {

// A whole model read from a checkpoint.
struct LoadedModel {
  std::string path;  // of the checkpoint directory
  CheckpointMetadata metadata;
  std::unique_ptr<Stage> stage;
};

// Reads the weights into a stage that holds all of the model. `checkpoint`: a checkpoint or run
// directory. Throws as CheckpointReader.
LoadedModel load_model(Device& device, const std::string& checkpoint, const StageOptions& options);

// The tokenizer that the checkpoint carries. Throws std::invalid_argument when it has none.
std::shared_ptr<const Tokenizer> tokenizer_of(const LoadedModel& model);

}  // namespace chaski
