#include "optim/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <fmt/core.h>
#include <numbers>
#include <stdexcept>

namespace chaski {
namespace {

[[noreturn]] void refuse(const char* key, const std::string& value, const std::string& allowed) {
  throw std::invalid_argument(fmt::format("{} = {} is not allowed: {}", key, value, allowed));
}

}  // namespace

const char* name_of(DecayKind kind) {
  switch (kind) {
    case DecayKind::constant:
      return "constant";
    case DecayKind::linear:
      return "linear";
    case DecayKind::cosine:
      return "cosine";
    case DecayKind::warmup_stable_decay:
      return "wsd";
  }
  return "unknown";
}

double LearningRateSchedule::at(std::int64_t step) const {
  if (step < warmup_steps) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  // The decay begins after its last step at the peak and ends with the last step at the floor.
  const std::int64_t decays =
      kind == DecayKind::warmup_stable_decay ? decay_steps : steps - warmup_steps - 1;
  const double done = static_cast<double>(step - (steps - 1 - decays));
  const double share = decays <= 0 ? 0.0 : std::clamp(done / static_cast<double>(decays), 0.0, 1.0);
  switch (kind) {
    case DecayKind::constant:
      return peak;
    case DecayKind::linear:
    case DecayKind::warmup_stable_decay:
      return peak * (1.0 - (1.0 - min_lr_ratio) * share);
    case DecayKind::cosine: {
      const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * share));
      return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * cosine);
    }
  }
  return peak;
}

void LearningRateSchedule::validate() const {
  if (!(peak > 0.0 && std::isfinite(peak))) {
    refuse("optimizer.lr", fmt::format("{}", peak), "must be above 0");
  }
  if (steps < 1) refuse("schedule.steps", std::to_string(steps), "must be at least 1");
  if (warmup_steps < 0 || warmup_steps > steps) {
    refuse("schedule.warmup_steps", std::to_string(warmup_steps),
           fmt::format("must lie between 0 and schedule.steps = {}", steps));
  }
  if (decay_steps < 0 || warmup_steps + decay_steps > steps) {
    refuse("schedule.decay_steps", std::to_string(decay_steps),
           fmt::format("must lie between 0 and schedule.steps - schedule.warmup_steps = {}",
                       steps - warmup_steps));
  }
  if (!(min_lr_ratio >= 0.0 && min_lr_ratio <= 1.0)) {
    refuse("schedule.min_lr_ratio", fmt::format("{}", min_lr_ratio), "must lie between 0 and 1");
  }
}

}  // namespace chaski
