#include <gtest/gtest.h>
#include <stdexcept>

#include "mpi_session.h"
#include "parallel/membership/step_transaction.h"

namespace chaski {
namespace {

TEST(StepTransaction, CommitsWhenAllCompleted) {
  Communicator communicator(mpi_session());
  StepTransaction transaction(communicator, {});
  for (int step = 0; step < 20; ++step) {
    transaction.begin(step, 0);
    const StepVerdict verdict = transaction.agree({});
    EXPECT_TRUE(verdict.commit);
    EXPECT_FALSE(verdict.stop || verdict.non_finite || verdict.failed);
  }
}

TEST(StepTransaction, OneVoteDecidesForAll) {
  Communicator communicator(mpi_session());
  StepTransaction transaction(communicator, {});
  const bool last = communicator.rank() + 1 == communicator.size();

  transaction.begin(0, 0);
  StepVerdict verdict = transaction.agree({.non_finite = last});
  EXPECT_FALSE(verdict.commit);
  EXPECT_TRUE(verdict.non_finite);

  transaction.begin(0, 0);
  verdict = transaction.agree({.stop_requested = communicator.rank() == 0});
  EXPECT_TRUE(verdict.commit);
  EXPECT_TRUE(verdict.stop);
}

TEST(StepTransaction, NoticesProcessesAtDifferentSteps) {
  Communicator communicator(mpi_session());
  if (communicator.size() == 1) GTEST_SKIP() << "one process agrees with itself";
  StepTransaction transaction(communicator, {});
  transaction.begin(100 + (communicator.rank() == 0 ? 1 : 0), 0);
  EXPECT_THROW(transaction.agree({}), std::logic_error);
  transaction.abort(StepFailure::here);

  Communicator fresh(mpi_session());
  StepTransaction of_version(fresh, {});
  of_version.begin(100, communicator.rank() == 0 ? 1 : 0);
  EXPECT_THROW(of_version.agree({}), std::logic_error);
  of_version.abort(StepFailure::here);
}

TEST(StepTransaction, AbortDropsTheWorkOfAnOpenStepOnly) {
  Communicator communicator(mpi_session());
  int dropped = 0;
  StepTransaction transaction(communicator, [&] { ++dropped; });
  transaction.abort(StepFailure::here);
  EXPECT_EQ(dropped, 0);
  transaction.begin(7, 0);
  EXPECT_THROW(transaction.begin(8, 0), std::logic_error);
  const StepVerdict verdict = transaction.abort(StepFailure::here);
  EXPECT_EQ(dropped, 1);
  EXPECT_TRUE(verdict.failed);
  EXPECT_FALSE(verdict.commit);
  EXPECT_THROW(transaction.agree({}), std::logic_error);
}

}  // namespace
}  // namespace chaski
