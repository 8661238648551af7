#include "app/job/stop_signal.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <poll.h>
#include <signal.h>
#include <stdexcept>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

namespace chaski {
namespace {

// A handler may touch lock-free atomics and call async-signal-safe functions only.
std::atomic<int> received{0};
std::atomic<long long> received_at_ms{0};
static_assert(std::atomic<int>::is_always_lock_free);
static_assert(std::atomic<long long>::is_always_lock_free);

constexpr std::array kSignals = {SIGTERM, SIGINT, SIGUSR1};
std::array<struct sigaction, kSignals.size()> previous_actions;

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : kSignals) sigaddset(&set, number);
  return set;
}

long long now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

void on_signal(int number) {
  const long long now = now_ms();
  int none = 0;
  if (received.compare_exchange_strong(none, number)) {
    received_at_ms = now;
    return;
  }
  if (number != SIGUSR1 && now - received_at_ms > 1000) _exit(128 + number);
}

}  // namespace

StopSignal::StopSignal() : end_(eventfd(0, EFD_CLOEXEC)) {
  if (end_ < 0)
    throw std::runtime_error("signals cannot be waited for: too many open files (ulimit -n)");
  received = 0;
  received_at_ms = now_ms();
  const sigset_t set = stop_signals();
  receiver_ = std::thread([this, set] {
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    // Not a semaphore, which waits in a system call that ThreadSanitizer does not know: it would
    // hold signals back until the thread makes another call.
    pollfd end{end_, POLLIN, 0};
    while (poll(&end, 1, -1) < 0 && errno == EINTR) {
    }
  });
  pthread_sigmask(SIG_BLOCK, &set, &previous_mask_);
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], &action, &previous_actions[i]);
  }
}

StopSignal::~StopSignal() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], &previous_actions[i], nullptr);
  }
  eventfd_write(end_, 1);
  receiver_.join();
  close(end_);
  pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
}

int StopSignal::number() const {
  return received;
}

const char* StopSignal::name() const {
  switch (number()) {
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "";
  }
}

}  // namespace chaski
