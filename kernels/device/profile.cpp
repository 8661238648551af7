#include "kernels/device/profile.h"

#include <cstring>
#include <stdexcept>
#include <utility>

namespace chaski {

Profile::Profile() : Profile(create_steady_clock()) {}

Profile::Profile(Device& device) : Profile(create_device_clock(device)) {}

Profile::Profile(std::unique_ptr<DeviceClock> clock) : clock_(std::move(clock)) {
  if (ProfileScope::active_ != nullptr) throw std::logic_error("this thread is profiled already");
  ProfileScope::active_ = this;
}

Profile::~Profile() {
  ProfileScope::active_ = nullptr;
}

const std::vector<Profile::Entry>& Profile::entries() const {
  collect();
  return entries_;
}

double Profile::seconds_of(const char* op) const {
  double seconds = 0.0;
  for (const Entry& entry : entries()) {
    if (std::strcmp(entry.op, op) == 0) seconds += entry.seconds;
  }
  return seconds;
}

void Profile::clear() {
  spans_.clear();
  closed_.clear();
  clock_->clear();
  entries_.clear();
}

void Profile::collect() const {
  if (open_ != kNone) throw std::logic_error("a profile is read while a scope is open");
  std::vector<double> inner_seconds(spans_.size(), 0.0);
  for (const std::size_t index : closed_) {
    const Span& span = spans_[index];
    const double seconds = clock_->seconds_between(span.first, span.last);
    if (span.outer != kNone) inner_seconds[span.outer] += seconds;
    add(span, seconds - inner_seconds[index]);
  }
  spans_.clear();
  closed_.clear();
  clock_->clear();
}

void Profile::add(const Span& span, double seconds) const {
  for (Entry& entry : entries_) {
    if (entry.shape != span.shape || std::strcmp(entry.op, span.op) != 0) continue;
    ++entry.calls;
    entry.seconds += seconds;
    return;
  }
  entries_.push_back({span.op, span.shape, 1, seconds});
}

void ProfileScope::open(const char* op, const std::array<std::int64_t, 3>& shape) {
  span_ = profile_->spans_.size();
  profile_->spans_.push_back({op, shape, profile_->open_, 0, 0});
  profile_->open_ = span_;
  profile_->spans_.back().first = profile_->clock_->mark();
}

void ProfileScope::close() {
  Profile::Span& span = profile_->spans_[span_];
  span.last = profile_->clock_->mark();
  profile_->closed_.push_back(span_);
  profile_->open_ = span.outer;
}

}  // namespace chaski
