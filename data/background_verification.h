#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "data/sequence_dataset.h"

namespace chaski {

// Compares token streams with their checksums in a thread of its own, so that nobody waits for a
// large file to be read. What is damaged but still consists of valid ids is noticed by nothing
// else. Used by one thread.
class BackgroundVerification {
 public:
  explicit BackgroundVerification(std::vector<std::shared_ptr<const TokenStream>> streams);
  // Stops within milliseconds where it is not done.
  ~BackgroundVerification() = default;

  // All was read, or damage was found.
  bool done() const { return done_; }
  // Throws std::runtime_error naming file and part when damage has been found; only the first time.
  void check();
  // Waits until it is done, then as check().
  void wait();

 private:
  void verify(const std::stop_token& stop) noexcept;

  std::vector<std::shared_ptr<const TokenStream>> streams_;
  std::exception_ptr damage_;  // set before done_
  std::atomic<bool> done_{false};
  std::jthread thread_;  // last: it uses the others
};

}  // namespace chaski
