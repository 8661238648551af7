#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "app/bench/model.h"
#include "app/job/device_choice.h"
#include "app/step/hosted_model.h"
#include "app/step/step_runner.h"
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
  BenchDevice device;
  bool no_graphs = false;

  DeviceChoice choose_device(Communicator& communicator) const;
};
// The model's options, --device, --precision and --micro-batch, --sequence-length,
// --tokens-per-pass. `options` must outlive `command`.
void add_bench_training_options(CLI::App& command, BenchTrainingOptions& options);

// Refuses what this host has not the memory for (check_memory_of_run); on GPUs nothing. All
// processes take part.
void check_memory_of_bench(const BenchTrainingOptions& options, const Membership& membership);

// Data-parallel training steps on random tokens; the same ones every step, on which the work does
// not depend.
class BenchTraining {
 public:
  // The device is one of options.choose_device(). The membership, one stage and a replica for each
  // process, must outlive this.
  BenchTraining(const Membership& membership, Device& device, const BenchTrainingOptions& options);

  const LlamaConfig& model() const { return hosted_model_.options().model; }
  // How MoC's channels are kept; none: the smaller form.
  std::optional<MocIndex> moc_index() const { return hosted_model_.options().moc_index; }
  HostedStage& hosted() { return *hosted_model_.stages().front(); }
  StepRunner& runner() { return runner_; }
  std::int64_t rows_per_pass() const { return hosted_model_.passes().rows; }
  std::int64_t tokens_per_step() const { return tokens_per_step_; }
  StepOutcome step();

 private:
  std::int64_t tokens_per_step_;
  HostedModel hosted_model_;
  StepRunner runner_;
  Buffer tokens_;
  Buffer targets_;
  std::int64_t next_step_ = 0;
};

}  // namespace chaski
