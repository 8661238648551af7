#pragma once

#include <string>
#include <vector>

#include "model/llama_config.h"

namespace chaski {

// How a run begins from a checkpoint: it goes on with that run, or is a new one with its weights.
enum class Beginning { resume, new_run };

// Whether a run of the model `wanted` may begin from a checkpoint, named by its path, of the model
// `saved`. A new run may have other values of what shapes no weight: of max_position_embeddings and
// rope_theta (for a longer context), rms_norm_eps, initializer_range (of no effect on weights that
// are there) and the channels of the FFN. One line for each of those that differ, with key, old and
// new value. Throws std::invalid_argument with all that may not differ.
std::vector<std::string> check_saved_model(const std::string& checkpoint, const LlamaConfig& saved,
                                           const LlamaConfig& wanted, Beginning beginning);

}  // namespace chaski
