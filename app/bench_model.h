#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/device.h"
#include "model/llama_config.h"

namespace CLI {
class App;
}

namespace chaski {

// The model shape that a benchmark measures, and the device that it measures on.
struct BenchModel {
  std::string preset = "llama-60m";
  std::int64_t vocab_size = 0;  // 0: the preset's
  int threads = 0;              // 0: all cores

  // Adds --preset, --vocab-size and --threads. This object must outlive `command`.
  void add_to(CLI::App& command);
  LlamaConfig config() const;
  std::unique_ptr<Device> create_device() const { return Device::create_cpu(threads); }
};

}  // namespace chaski
