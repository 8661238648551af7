#include "app/bench_model.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "app/option_checks.h"

namespace chaski {

void BenchModel::add_to(CLI::App& command) {
  command
      .add_option("--preset", preset,
                  fmt::format("Model shape: {}", fmt::join(llama_preset_names(), ", ")))
      ->check(one_of(llama_preset_names()))
      ->capture_default_str();
  command.add_option("--vocab-size", vocab_size, "Instead of the preset's; 0: the preset's")
      ->check(whole_number_between(0, 1 << 26));
  command.add_option("--threads", threads, "CPU threads of a process; 0: all cores")
      ->check(whole_number_between(0, 4096))
      ->capture_default_str();
}

void BenchDevice::add_to(CLI::App& command) {
  add_device_option(command, device);
  add_precision_option(command, precision);
}

LlamaConfig BenchModel::config() const {
  LlamaConfig config = llama_preset(preset);
  if (vocab_size > 0) config.vocab_size = vocab_size;
  return config;
}

}  // namespace chaski
