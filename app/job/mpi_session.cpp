#include "app/job/mpi_session.h"

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <memory>
#include <string>

namespace chaski {
namespace {

std::unique_ptr<MpiRuntime> session;

// An Open MPI that was moved after it was built (the one under .deps/) finds its own files through
// OPAL_PREFIX, which its mpirun sets. A process started without mpirun must do it for itself.
void tell_open_mpi_its_place() {
  Dl_info info{};
  if (std::getenv("OPAL_PREFIX") || !dladdr(reinterpret_cast<void*>(&MPI_Init), &info)) return;
  std::error_code error;
  const auto library = std::filesystem::canonical(info.dli_fname, error);
  if (error) return;
  const auto prefix = library.parent_path().parent_path();
  const bool whole = std::filesystem::exists(prefix / "share" / "openmpi", error) &&
                     std::filesystem::exists(prefix / "bin" / "mpirun", error);
  if (whole) setenv("OPAL_PREFIX", prefix.c_str(), 0);
}

}  // namespace

MpiRuntime& mpi_session() {
  if (!session) {
    tell_open_mpi_its_place();
    // Without a home directory Open MPI does not start.
    setenv("HOME", "/tmp", 0);
    session = std::make_unique<MpiRuntime>();
  }
  return *session;
}

MpiRuntime* started_mpi_session() {
  return session.get();
}

}  // namespace chaski
