#pragma once

#include <cstddef>
#include <cstdint>

namespace chaski::cuda_model {

/// A stack of its own and where it was left. One runs at a time; the host thread that launches is
/// one too (without a stack of ours). Switching tells AddressSanitizer.
class Fiber {
 public:
  /// The calling context itself: a place to switch away from and back to.
  Fiber() = default;
  /// A new stack on which `entry(this)` starts at the first switch to it; entry never returns.
  explicit Fiber(void (*entry)(Fiber*));
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Leaves `from`, which is the running one, for `to`. Returns when something switches back.
  static void switch_between(Fiber& from, Fiber& to);
  /// Number of switches since the program began.
  static std::uint64_t switch_count();

  /// For the owner: which thread of the block this stack runs.
  int thread = -1;

 private:
  static void start();
  static void arrive(Fiber* self);

  void (*entry_)(Fiber*) = nullptr;
  void* stack_pointer_ = nullptr;  // where it was left; with ucontext: the ucontext_t
  void* mapping_ = nullptr;
  const void* stack_bottom_ = nullptr;  // as AddressSanitizer wants it
  std::size_t stack_size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace chaski::cuda_model
