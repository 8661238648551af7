#include "app/console/version.h"

#include <dnnl.h>
#include <fmt/format.h>
#include <hdf5.h>

#include "chaski_commit.h"
#include "kernels/device/cpu_isa.h"
#include "kernels/device/device_backend.h"
#include "kernels/products/matmul.h"
#include "parallel/mpi/runtime.h"

namespace chaski {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace

std::string program_version() {
  return CHASKI_VERSION;
}

std::string program_commit() {
  return CHASKI_COMMIT;
}

std::string version_line() {
  return fmt::format("chaski {} (commit {})", program_version(), program_commit());
}

std::string version_text() {
  return fmt::format(
      "{}\n"
      "compiler: {}, {} build\n"
      "instruction set: {}\n"
      "CUDA: {}\n"
      "MPI: {}, {}\n"
      "oneDNN: {}\n"
      "HDF5: {}\n"
      "SentencePiece: {}\n",
      version_line(), compiler(), CHASKI_BUILD_TYPE, name_of(cpu_isa()),
      is_built_with_cuda() ? gemm_library(Backend::cuda) : "no", MpiRuntime::library_version(),
      MpiRuntime::built_with_recovery() ? "can survive failures" : "cannot survive failures",
      onednn_version(), hdf5_version(), CHASKI_SENTENCEPIECE_VERSION);
}

}  // namespace chaski
