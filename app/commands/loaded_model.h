#pragma once

#include <memory>

#include "data/tokenizer.h"
#include "fault/checkpoint/reader.h"
#include "kernels/device/device.h"
#include "model/stage.h"

namespace chaski {

// The weights of a checkpoint in a stage that holds the whole model. Throws as CheckpointReader.
std::unique_ptr<Stage> load_model(Device& device, const CheckpointReader& checkpoint,
                                  const StageOptions& options);

// The tokenizer that the checkpoint carries. Throws std::invalid_argument when it has none.
std::shared_ptr<const Tokenizer> tokenizer_of(const CheckpointReader& checkpoint);

}  // namespace chaski
