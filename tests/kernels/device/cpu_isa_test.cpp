#include "kernels/device/cpu_isa.h"

#include <gtest/gtest.h>
#include <stdexcept>
#include <stdlib.h>
#include <string>

namespace chaski {
namespace {

// The choice is made once in a process: each case needs its own, which a death test gives.
[[noreturn]] void report_isa(const char* wanted) {
  setenv("CHASKI_ISA", wanted, 1);
  try {
    const std::string name = name_of(cpu_isa());
    _exit(name == wanted ? 10 : 11);
  } catch (const std::invalid_argument& error) {
    _exit(std::string(error.what()).find(wanted) != std::string::npos ? 12 : 13);
  }
}

class CpuIsaTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(CpuIsaTest, TheEnvironmentLowersIt) {
  EXPECT_EXIT(report_isa("baseline"), ::testing::ExitedWithCode(10), "");
}

TEST_F(CpuIsaTest, AWrongNameIsRefusedByName) {
  EXPECT_EXIT(report_isa("avx1024"), ::testing::ExitedWithCode(12), "");
}

}  // namespace
}  // namespace chaski
