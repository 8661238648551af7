#pragma once

#include <cstdint>
#include <string>

namespace chaski {

enum class DecayKind { constant, linear, cosine, warmup_stable_decay };
const char* name_of(DecayKind kind);  // "constant", "linear", "cosine", "wsd"

// The learning rate as a pure function of the step.
struct LearningRateSchedule {
  DecayKind kind = DecayKind::cosine;
  double peak = 1e-3;
  std::int64_t steps = 1;         // of the whole run
  std::int64_t warmup_steps = 0;  // linear from peak/warmup_steps to peak
  std::int64_t decay_steps = 0;   // warmup_stable_decay only: the last steps, linear to the floor
  double min_lr_ratio = 0.1;      // the floor as a share of the peak

  // Rate of the update with 0-based number `step`. With warm-up the first update has rate
  // peak/warmup_steps, update warmup_steps - 1 has the peak, and the last one (steps - 1) the
  // floor.
  double at(std::int64_t step) const;
  // Throws std::invalid_argument naming the key, the value and what is allowed.
  void validate() const;
};

}  // namespace chaski
