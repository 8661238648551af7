#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "app/bench/model.h"
#include "app/job/device_choice.h"
#include "app/training/step_engine.h"
#include "kernels/device/device.h"
#include "parallel/mpi/communicator.h"

namespace CLI {
class App;
}

namespace chaski {

struct BenchTrainingOptions {
  BenchModel model;
  std::int64_t micro_batch = 8;
  int micro_batches = 1;
  std::int64_t sequence_length = 256;
  std::int64_t tokens_per_pass = kTokensPerPass;
  Recompute recompute = Recompute::elementwise;
  std::string device = "auto";
  std::string precision = "auto";
  bool no_graphs = false;

  DeviceChoice choose_device(Communicator& communicator) const;
};
// The model's options, --device, --precision and --micro-batch, --sequence-length,
// --tokens-per-pass. `options` must outlive `command`.
void add_bench_training_options(CLI::App& command, BenchTrainingOptions& options);

// Refuses what this host has not the memory for (check_memory_of_run); on GPUs nothing. All
// processes take part.
void check_memory_of_bench(const BenchTrainingOptions& options, Communicator& communicator);

// Data-parallel training steps on random tokens; the same ones every step, on which the work does
// not depend.
class BenchTraining {
 public:
  // The device is one of options.choose_device().
  BenchTraining(Communicator& communicator, Device& device, const BenchTrainingOptions& options);

  const LlamaConfig& model() const { return model_; }
  // How MoC's channels are kept; none: the smaller form.
  std::optional<MocIndex> moc_index() const { return moc_index_; }
  StepEngine& engine() { return *engine_; }
  std::int64_t tokens_per_step() const { return tokens_per_step_; }
  StepOutcome step();

 private:
  LlamaConfig model_;
  std::optional<MocIndex> moc_index_;
  std::int64_t tokens_per_step_;
  std::unique_ptr<StepEngine> engine_;
  Buffer tokens_;
  Buffer targets_;
  std::int64_t next_step_ = 0;
};

}  // namespace chaski
