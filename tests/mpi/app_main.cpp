#include <gtest/gtest.h>

#include "app/job/mpi_session.h"

// Every process runs every test; one that fails anywhere makes mpirun's exit status non-zero.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  chaski::MpiRuntime& runtime = chaski::mpi_session();
  const int failed = RUN_ALL_TESTS();
  // A process that gave up a test early leaves the others waiting: end them.
  if (failed != 0) runtime.abort(1);
  runtime.finish(0);
  return 0;
}
