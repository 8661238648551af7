#include "app/bench_model.h"

#include <CLI/CLI.hpp>

namespace chaski {

void BenchModel::add_to(CLI::App& command) {
  command.add_option("--preset", preset, "Model shape")->capture_default_str();
  command.add_option("--vocab-size", vocab_size, "Instead of the preset's; 0: the preset's")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--threads", threads, "CPU threads of a process; 0: all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

LlamaConfig BenchModel::config() const {
  LlamaConfig config = llama_preset(preset);
  if (vocab_size > 0) config.vocab_size = vocab_size;
  return config;
}

}  // namespace chaski
