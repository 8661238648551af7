#include "fault/checkpoint/output_lock.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdexcept>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/fault/checkpoint/temporary_directory.h"

namespace chaski {
namespace {

TEST(OutputLock, SecondJobIsRefusedNamingTheFirst) {
  const TemporaryDirectory directory;
  const std::string output = directory.path() + "/a/b";
  const OutputLock lock(output);
  try {
    const OutputLock second(output);
    FAIL() << "two locks";
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(output), std::string::npos);
    EXPECT_NE(message.find("process " + std::to_string(::getpid()) + " on host "),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("\nhint: "), std::string::npos);
  }
}

TEST(OutputLock, IsFreeAgainAfterwards) {
  const TemporaryDirectory directory;
  { const OutputLock lock(directory.path()); }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
  EXPECT_NO_THROW(OutputLock(directory.path()));
}

TEST(OutputLock, OfAKilledProcessIsTakenOver) {
  const TemporaryDirectory directory;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const OutputLock lock(directory.path());
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_THROW(OutputLock(directory.path()), std::invalid_argument);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(std::filesystem::exists(directory.path() + "/.lock"));
  EXPECT_NO_THROW(OutputLock(directory.path()));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(OutputLock, DirectoryThatCannotBeMade) {
  const TemporaryDirectory directory;
  std::ofstream(directory.path() + "/file") << "x";
  EXPECT_THROW(OutputLock(directory.path() + "/file/run"), std::runtime_error);
}

}  // namespace
}  // namespace chaski
