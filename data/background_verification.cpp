#include "data/background_verification.h"

#include <unistd.h>
#include <utility>

namespace chaski {

BackgroundVerification::BackgroundVerification(
    std::vector<std::shared_ptr<const TokenStream>> streams)
    : streams_(std::move(streams)),
      thread_([this](const std::stop_token& stop) { verify(stop); }) {}

void BackgroundVerification::check() {
  if (!done_) return;
  if (const std::exception_ptr damage = std::exchange(damage_, nullptr)) {
    std::rethrow_exception(damage);
  }
}

void BackgroundVerification::wait() {
  done_.wait(false);
  check();
}

void BackgroundVerification::verify(const std::stop_token& stop) noexcept {
  // Of this thread alone, on Linux: the training's threads go first.
  [[maybe_unused]] const int niceness = nice(10);
  try {
    for (const auto& stream : streams_) {
      for (const auto& file : stream->files()) file->part(stream->part()).verify_checksum(stop);
    }
  } catch (...) {
    damage_ = std::current_exception();
  }
  done_ = true;
  done_.notify_all();
}

}  // namespace chaski
