#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "app/config/schema.h"
#include "app/job/device_choice.h"
#include "kernels/device/device.h"
#include "model/llama_config.h"

namespace CLI {
class App;
}

namespace chaski {

// Adds an option whose values number the names in `choices`. `member` must outlive `command`.
void add_choice(CLI::App& command, const char* option, ChoiceReference member,
                std::vector<std::string> choices, const char* text);

// The model shape that a benchmark measures, and the device that it measures on.
struct BenchModel {
  std::string preset = "llama-60m";
  std::int64_t vocab_size = 0;  // 0: the preset's
  int threads = 0;              // 0: all cores
  FeedForwardKind ffn = FeedForwardKind::swiglu;
  MocConfig moc;
  MocIndexChoice moc_index = MocIndexChoice::automatic;

  // Adds --preset, --vocab-size and --threads. This object must outlive `command`.
  void add_to(CLI::App& command);
  // Adds --ffn, --moc-keep, --moc-pattern, --moc-selection and --moc-index.
  void add_ffn_to(CLI::App& command);
  LlamaConfig config() const;
};

// The device that a benchmark of one process measures on, and its numbers.
struct BenchDevice {
  std::string device = "auto";
  std::string precision = "auto";

  // Adds --device and --precision. This object must outlive `command`.
  void add_to(CLI::App& command);
  DeviceChoice choice() const { return device_named(device, precision); }
};

}  // namespace chaski
