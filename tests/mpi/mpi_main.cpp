// The main of the tests that run under mpirun: every process runs every test; one that fails
// anywhere makes mpirun's exit status non-zero.
#include <cstdio>
#include <gtest/gtest.h>

#include "mpi_session.h"

namespace chaski {
namespace {

MpiRuntime* session = nullptr;

// Says which process a failure is of; silent otherwise, but on rank 0.
class FailurePrinter : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", session->rank(),
                 result.file_name() ? result.file_name() : "", result.line_number(),
                 result.message());
  }
};

}  // namespace

MpiRuntime& mpi_session() {
  return *session;
}

}  // namespace chaski

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  chaski::MpiRuntime runtime(&argc, &argv);
  chaski::session = &runtime;
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (runtime.rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new chaski::FailurePrinter);
  }
  const int failed = RUN_ALL_TESTS();
  // A process that gave up a test early leaves the others waiting: end them.
  if (failed != 0) runtime.abort(1);
  runtime.finish(0);
  return 0;
}
