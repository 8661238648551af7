#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "app/config/config.h"
#include "app/plan/memory.h"

namespace chaski {

// What this machine can do, measured with `threads` threads, or what a GPU of it can do.
struct MachineRates {
  int threads = 1;
  double gemm_ceiling = 0.0;        // FLOP/s of the best product seen: the ceiling
  double gemm = 0.0;                // FLOP/s of the model's own products
  double channels = 0.0;            // FLOP/s of products of MoC's kept channels; 0: there are none
  double attention_forward = 0.0;   // FLOP/s
  double attention_backward = 0.0;  // FLOP/s
  double copy = 0.0;                // bytes/s read and written by a copy of large tensors
};

// Measures for a few seconds, in the precision of the config: the GEMM ceiling, the products and
// the attention of the model's shapes (on a CPU with fewer tokens where these are large), and a
// copy. `create_device` is called for each, so that the memory of one goes before the next.
MachineRates measure_rates(const std::function<std::unique_ptr<Device>()>& create_device,
                           const TrainConfig& config);
// All products at `gemm` FLOP/s, all else at `copy` bytes/s.
MachineRates rates_from(double gemm, double copy);

struct StepTime {
  double seconds = 0.0;
  double floor_seconds = 0.0;  // all operations at the GEMM ceiling, traffic at copy bandwidth
  double gemm_seconds = 0.0;   // of the busiest process, as the others below; all products
  double attention_seconds = 0.0;
  double traffic_seconds = 0.0;
  double reduction_seconds = 0.0;  // gradients through shared memory, at copy bandwidth
  double idle_seconds = 0.0;       // waiting for other stages
};

// Predicts a step of a run on this one machine: `threads` a process, the copy bandwidth shared by
// all processes; or with a GPU for each process, and what goes from one GPU to another left out.
StepTime predict_step(const MachineRates& rates, const TrainConfig& config,
                      const std::vector<RankMemory>& ranks, int threads);

}  // namespace chaski
