#pragma once

namespace chaski {

// The rank that the launcher (mpirun, srun) gave this process, from the environment; 0 without one.
// For what happens before MPI is started.
int launched_rank();
// Whether a launcher started this process.
bool is_launched();

}  // namespace chaski
