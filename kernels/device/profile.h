#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device/clock.h"

namespace chaski {

// Where the time of the calling thread goes, by op: it records from its construction to its
// destruction, one at a time per thread. Every op opens a ProfileScope, which costs two readings of
// the clock while a Profile exists, else one branch.
class Profile {
 public:
  // One op, or one op on operands of one shape where the scope gave it.
  struct Entry {
    const char* op;
    std::array<std::int64_t, 3> shape;  // zeros: not given
    std::int64_t calls;
    double seconds;  // without the scopes that were open inside it
  };

  // Throws std::logic_error when this thread has a Profile already.
  Profile();
  // By the moments of a device: on a GPU, when the ops run, not when they are queued.
  explicit Profile(Device& device);
  // On the thread that made it, with no scope open.
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // In the order in which they were first closed. With no scope open; waits for the device.
  const std::vector<Entry>& entries() const;
  // Of all entries of this op.
  double seconds_of(const char* op) const;
  void clear();

 private:
  friend class ProfileScope;
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  struct Span {
    const char* op;
    std::array<std::int64_t, 3> shape;
    std::size_t outer;  // the span that was open around it, or kNone
    std::size_t first;  // moments of the clock
    std::size_t last;
  };

  explicit Profile(std::unique_ptr<DeviceClock> clock);
  void collect() const;
  void add(const Span& span, double seconds) const;

  std::unique_ptr<DeviceClock> clock_;
  std::size_t open_ = kNone;  // the innermost open span
  // Spans become entries when somebody asks for these.
  mutable std::vector<Span> spans_;
  mutable std::vector<std::size_t> closed_;  // in the order of their ends
  mutable std::vector<Entry> entries_;
};

// Charges the time of its life to `op`, a string literal. Scopes nest.
class ProfileScope {
 public:
  explicit ProfileScope(const char* op, std::int64_t m = 0, std::int64_t n = 0, std::int64_t k = 0)
      : profile_(active_) {
    if (profile_ != nullptr) [[unlikely]]
      open(op, {m, n, k});
  }
  ~ProfileScope() {
    if (profile_ != nullptr) [[unlikely]]
      close();
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  friend class Profile;
  void open(const char* op, const std::array<std::int64_t, 3>& shape);
  void close();

  constinit static inline thread_local Profile* active_ = nullptr;

  Profile* profile_;
  std::size_t span_;
};

}  // namespace chaski
