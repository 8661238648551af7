#include "app/job/stop_signal.h"

#include <atomic>
#include <csignal>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "kernels/device/device.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

// As from outside: to the process, and back when its handler has run. Again now and then, for
// ThreadSanitizer, which may hold a signal back that comes while its thread starts.
void send(int number, const StopSignal& stop) {
  for (int i = 0; i < 5000 && !stop.requested(); ++i) {
    if (i % 500 == 0) kill(getpid(), number);
    usleep(1000);
  }
}

TEST(StopSignal, TellsWhichCame) {
  StopSignal stop;
  EXPECT_FALSE(stop.requested());
  EXPECT_STREQ(stop.name(), "");
  send(SIGTERM, stop);
  EXPECT_TRUE(stop.requested());
  EXPECT_EQ(stop.number(), SIGTERM);
  EXPECT_STREQ(stop.name(), "SIGTERM");
}

TEST(StopSignal, StartsAnew) {
  {
    StopSignal stop;
    send(SIGINT, stop);
    EXPECT_STREQ(stop.name(), "SIGINT");
  }
  StopSignal stop;
  EXPECT_FALSE(stop.requested());
}

TEST(StopSignal, RestoresWhatWasThere) {
  const auto previous = std::signal(SIGTERM, SIG_IGN);
  { StopSignal stop; }
  EXPECT_EQ(std::signal(SIGTERM, previous), SIG_IGN);
}

// Exit status of a child that gets the signal twice with a pause between.
int status_after_two(int number, useconds_t pause) {
  const pid_t child = fork();
  if (child == 0) {
    StopSignal stop;
    send(number, stop);
    usleep(pause);
    kill(getpid(), number);
    usleep(200000);
    _exit(7);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(StopSignal, ASecondOneEndsAtOnce) {
  EXPECT_EQ(status_after_two(SIGTERM, 1200000), 143);
  EXPECT_EQ(status_after_two(SIGINT, 1200000), 130);
}

// It is sent again by whoever is impatient, and asks for the same.
TEST(StopSignal, ASecondUserSignalEndsNothing) {
  EXPECT_EQ(status_after_two(SIGUSR1, 1200000), 7);
}

TEST(StopSignal, TwoAtTheSameTimeAreOne) {
  EXPECT_EQ(status_after_two(SIGTERM, 1000), 7);
}

bool blocks_stop_signals() {
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  return sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGINT) == 1 &&
         sigismember(&mask, SIGUSR1) == 1;
}

TEST(StopSignal, KeepsThemAwayFromWhatComputes) {
  EXPECT_FALSE(blocks_stop_signals());
  {
    StopSignal stop;
    EXPECT_TRUE(blocks_stop_signals());
    bool in_thread = false;
    std::thread([&] { in_thread = blocks_stop_signals(); }).join();
    EXPECT_TRUE(in_thread);
  }
  EXPECT_FALSE(blocks_stop_signals());
}

// A handler on the thread of a product ends the process here with a corrupted heap.
TEST(StopSignal, LeavesTheProductsBuffersAlone) {
  const StopSignal stop;
  const auto device = Device::create_cpu(2);
  const Buffer dy = device->allocate(DType::f32, {64, 88}, MemoryCategory::activations);
  const Buffer weight = device->allocate(DType::f32, {88, 32}, MemoryCategory::activations);
  const Buffer dx = device->allocate(DType::f32, {64, 32}, MemoryCategory::activations);
  std::atomic<bool> sent = false;
  std::thread sender([&] {
    for (int i = 0; i < 2000; ++i) {
      kill(getpid(), SIGUSR1);
      usleep(20);
    }
    sent = true;
  });
  while (!sent) linear_backward_input(dy.tensor(), weight.tensor(), dx.tensor());
  sender.join();
  EXPECT_TRUE(stop.requested());
}

}  // namespace
}  // namespace chaski
