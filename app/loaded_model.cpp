#include "app/loaded_model.h"

#include <fmt/core.h>
#include <stdexcept>

#include "fault/checkpoint_reader.h"

namespace chaski {

LoadedModel load_model(Device& device, const std::string& checkpoint, const StageOptions& options) {
  const CheckpointReader reader(checkpoint, Verification::sizes);
  LoadedModel model;
  model.path = reader.path();
  model.metadata = reader.metadata();
  const LlamaConfig& config = model.metadata.model;
  model.stage = std::make_unique<Stage>(device, config, stage_range(config, 0, 1), options);
  reader.read_weights(model.stage->parameters());
  return model;
}

std::shared_ptr<const Tokenizer> tokenizer_of(const LoadedModel& model) {
  if (model.metadata.tokenizer_model.empty()) {
    throw std::invalid_argument(fmt::format(
        "{} carries no tokenizer\nhint: import the model again with --tokenizer", model.path));
  }
  return Tokenizer::from_bytes(model.metadata.tokenizer_model, model.path);
}

}  // namespace chaski
