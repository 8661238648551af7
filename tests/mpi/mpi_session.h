#pragma once

#include "parallel/mpi/runtime.h"

namespace chaski {

// The session of the test program, started by its main.
MpiRuntime& mpi_session();

}  // namespace chaski
