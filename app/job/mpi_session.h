#pragma once

#include "parallel/mpi/runtime.h"

namespace chaski {

// The process's MPI session: started at the first call, by the commands that run under mpirun as
// the first thing they do; ended by main, which needs it to tell an error that all processes share
// from one of a few. Throws as MpiRuntime's constructor does.
MpiRuntime& mpi_session();

// Null where no command has started it.
MpiRuntime* started_mpi_session();

}  // namespace chaski
