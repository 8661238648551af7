#include "kernels/profile.h"

#include <cstring>
#include <stdexcept>
#include <utility>

namespace chaski {

Profile::Profile() {
  if (ProfileScope::active_ != nullptr) throw std::logic_error("this thread is profiled already");
  ProfileScope::active_ = this;
}

Profile::~Profile() {
  ProfileScope::active_ = nullptr;
}

double Profile::seconds_of(const char* op) const {
  double seconds = 0.0;
  for (const Entry& entry : entries_) {
    if (std::strcmp(entry.op, op) == 0) seconds += entry.seconds;
  }
  return seconds;
}

void Profile::add(const char* op, const std::array<std::int64_t, 3>& shape, double seconds) {
  for (Entry& entry : entries_) {
    if (entry.shape != shape || std::strcmp(entry.op, op) != 0) continue;
    ++entry.calls;
    entry.seconds += seconds;
    return;
  }
  entries_.push_back({op, shape, 1, seconds});
}

void ProfileScope::open(const char* op, const std::array<std::int64_t, 3>& shape) {
  op_ = op;
  shape_ = shape;
  outer_inner_seconds_ = std::exchange(profile_->inner_seconds_, 0.0);
  start_ = std::chrono::steady_clock::now();
}

void ProfileScope::close() {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  profile_->add(op_, shape_, elapsed.count() - profile_->inner_seconds_);
  profile_->inner_seconds_ = outer_inner_seconds_ + elapsed.count();
}

}  // namespace chaski
