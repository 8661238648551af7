#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

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
  // On the thread that made it, with no scope open.
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // In the order in which they were first seen.
  const std::vector<Entry>& entries() const { return entries_; }
  // Of all entries of this op.
  double seconds_of(const char* op) const;
  void clear() { entries_.clear(); }

 private:
  friend class ProfileScope;
  void add(const char* op, const std::array<std::int64_t, 3>& shape, double seconds);

  std::vector<Entry> entries_;
  double inner_seconds_ = 0.0;  // of the scopes closed inside the innermost open one
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
  const char* op_;
  std::array<std::int64_t, 3> shape_;
  double outer_inner_seconds_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace chaski
