#include "app/stop_signal.h"

#include <csignal>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace chaski {
namespace {

TEST(StopSignal, TellsWhichCame) {
  StopSignal stop;
  EXPECT_FALSE(stop.requested());
  EXPECT_STREQ(stop.name(), "");
  std::raise(SIGTERM);
  EXPECT_TRUE(stop.requested());
  EXPECT_EQ(stop.number(), SIGTERM);
  EXPECT_STREQ(stop.name(), "SIGTERM");
}

TEST(StopSignal, StartsAnew) {
  {
    StopSignal stop;
    std::raise(SIGINT);
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
    std::raise(number);
    usleep(pause);
    std::raise(number);
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

}  // namespace
}  // namespace chaski
