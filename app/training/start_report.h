#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "app/job/device_choice.h"
#include "app/step/membership.h"
#include "app/training/run_data.h"
#include "kernels/device/device.h"

namespace chaski {

// What a run has found before its first step.
struct StartReport {
  const TrainConfig& config;
  const Membership& membership;
  const RunData& data;
  Device& device;
  const DeviceChoice& choice;
  std::vector<std::string> device_lines;  // of all processes
  double gemm_ceiling = 0.0;              // GFLOP/s of all processes together
  std::int64_t micro_batches = 1;         // of a replica in a step
  std::string checkpoint;                 // begun from; empty: none
  std::int64_t step = 0;
};
// On standard output.
void print_start(const StartReport& report);

}  // namespace chaski
