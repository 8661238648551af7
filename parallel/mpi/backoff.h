#pragma once

#include <chrono>
#include <sched.h>
#include <thread>

namespace chaski {

// Waiting that is quick when the answer is near and leaves the core to others when it is not:
// processes may outnumber the cores.
class Backoff {
 public:
  void reset() { rounds_ = 0; }
  void pause() {
    ++rounds_;
    if (rounds_ <= kSpins) return;
    if (rounds_ <= kSpins + kYields) {
      sched_yield();
      return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }

 private:
  static constexpr int kSpins = 50;
  static constexpr int kYields = 400;
  int rounds_ = 0;
};

}  // namespace chaski
