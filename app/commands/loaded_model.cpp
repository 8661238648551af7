#include "app/commands/loaded_model.h"

#include <fmt/core.h>
#include <stdexcept>

#include "app/console/launcher.h"

namespace chaski {

std::unique_ptr<Stage> load_model(Device& device, const CheckpointReader& checkpoint,
                                  const StageOptions& options) {
  for (const SkippedCheckpoint& skipped : checkpoint.skipped()) {
    if (launched_rank() != 0) break;
    fmt::print(stderr, "chaski: warning: skipped {}: {}\n", skipped.path, skipped.reason);
  }
  const LlamaConfig& config = checkpoint.metadata().model;
  auto stage = std::make_unique<Stage>(device, config, stage_range(config, 0, 1), options);
  checkpoint.read_weights(stage->parameters());
  return stage;
}

std::shared_ptr<const Tokenizer> tokenizer_of(const CheckpointReader& checkpoint) {
  if (checkpoint.metadata().tokenizer_model.empty()) {
    throw std::invalid_argument(
        fmt::format("{} carries no tokenizer\nhint: import the model again with --tokenizer",
                    checkpoint.path()));
  }
  return Tokenizer::from_bytes(checkpoint.metadata().tokenizer_model, checkpoint.path());
}

}  // namespace chaski
