#include "app/job/program_error.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <new>
#include <stdexcept>

#include "parallel/mpi/communicator.h"

namespace chaski {
namespace {

TEST(ProgramError, WrongInputEndsWithTwo) {
  const auto error = describe_error(std::invalid_argument("a.h5: no tokens\nhint: tokenize"));
  EXPECT_EQ(error.message, "a.h5: no tokens");
  EXPECT_EQ(error.hint, "tokenize");
  EXPECT_EQ(error.exit_code, 2);
}

TEST(ProgramError, FailuresEndWithOne) {
  const auto error = describe_error(std::runtime_error("disk full"));
  EXPECT_EQ(error.message, "disk full");
  EXPECT_EQ(error.hint, "");
  EXPECT_EQ(error.exit_code, 1);
  EXPECT_EQ(describe_error(std::filesystem::filesystem_error("x", std::error_code())).exit_code, 1);
}

TEST(ProgramError, MessagesAreOneLine) {
  const auto error = describe_error(std::runtime_error("a\nb\n\nhint: c\nd\n"));
  EXPECT_EQ(error.message, "a; b");
  EXPECT_EQ(error.hint, "c; d");
}

TEST(ProgramError, ExhaustedMemoryHasAHint) {
  const auto error = describe_error(std::bad_alloc());
  EXPECT_EQ(error.exit_code, 1);
  EXPECT_NE(error.hint.find("micro_batch"), std::string::npos);
}

// The hint is told where the run ends, not by who may go on after the failure.
TEST(ProgramError, AfterAFailedProcessTheRunCanBeResumed) {
  const PeerFailure failure("rank 1 is gone", {1});
  EXPECT_STREQ(failure.what(), "rank 1 is gone");
  const auto error = describe_error(failure);
  EXPECT_EQ(error.message, "rank 1 is gone");
  EXPECT_NE(error.hint.find("--resume auto"), std::string::npos);
  EXPECT_EQ(error.exit_code, 1);
}

TEST(ProgramError, BugsAreCalledSo) {
  const auto error = describe_error(std::out_of_range("vector"));
  EXPECT_EQ(error.message, "internal error: vector");
  EXPECT_EQ(error.exit_code, 1);
}

TEST(ProgramError, IsPrintedAsAgreed) {
  testing::internal::CaptureStderr();
  print_error({"what", "do this", 2});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "chaski: error: what\nhint: do this\n");
  testing::internal::CaptureStderr();
  print_error({"what", "", 1});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "chaski: error: what\n");
}

}  // namespace
}  // namespace chaski
