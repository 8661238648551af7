#include "app/stop_signal.h"

#include <atomic>
#include <signal.h>
#include <time.h>
#include <unistd.h>

namespace chaski {
namespace {

// A handler may touch lock-free atomics and call async-signal-safe functions only.
std::atomic<int> received{0};
std::atomic<long long> received_at_ms{0};
static_assert(std::atomic<int>::is_always_lock_free);
static_assert(std::atomic<long long>::is_always_lock_free);

struct sigaction previous_terminate;
struct sigaction previous_interrupt;
struct sigaction previous_user;

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

StopSignal::StopSignal() {
  received = 0;
  received_at_ms = now_ms();
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, &previous_terminate);
  sigaction(SIGINT, &action, &previous_interrupt);
  sigaction(SIGUSR1, &action, &previous_user);
}

StopSignal::~StopSignal() {
  sigaction(SIGTERM, &previous_terminate, nullptr);
  sigaction(SIGINT, &previous_interrupt, nullptr);
  sigaction(SIGUSR1, &previous_user, nullptr);
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
