#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "model/llama_config.h"

namespace chaski {

// What a checkpoint holds beside its tensors.
struct CheckpointMetadata {
  std::int64_t step = 0;     // finished steps; also the data cursor
  std::int64_t updates = 0;  // of the weights: of these steps those that were not skipped
  std::uint64_t seed = 0;
  std::int64_t tokens_seen = 0;
  std::string config_toml;  // resolved; empty in an imported checkpoint
  LlamaConfig model;
  std::string optimizer_name;                    // empty: no optimizer state
  std::map<std::string, std::string> precision;  // of each tensor class: {"weights", "f32"}
  std::string tokenizer_fingerprint;
  std::string tokenizer_model;                  // the SentencePiece model file's bytes
  std::map<std::string, std::string> versions;  // {"chaski", "0.1.0"}, {"commit", …}, {"mpi", …}
  std::int64_t replicas = 1;                    // the layout of the run that saved it
  std::int64_t stages = 1;
  std::int64_t threads = 1;  // of each process
};

}  // namespace chaski
