#pragma once

#include <nlohmann/json.hpp>

#include "kernels/device/device.h"
#include "kernels/device/profile.h"
#include "model/llama_config.h"

namespace chaski {

// The profiled steps, and what they are compared with.
struct ProfiledSteps {
  LlamaConfig model;
  Backend backend = Backend::cpu;
  std::int64_t tokens = 0;  // of a pass
  int steps = 0;
  double seconds = 0.0;       // of all of them
  double gemm_ceiling = 0.0;  // GFLOP/s
};

// Where the time of a training step went on this process: an array of {"part", "seconds" of a step,
// "share" of it, "calls"; products also "gflops" and "gemm_share"}, with the products by layer and
// pass first and "rest" (what no op accounts for) last. The shares add up to 1.
nlohmann::json profile_report(const Profile& profile, const ProfiledSteps& steps);
void print_profile(const nlohmann::json& parts);

}  // namespace chaski
