#include "parallel/nccl/library.h"

#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/shared_library.h"

namespace chaski::nccl {
namespace {

// Communicators whose calls do not block have all that is used here since then.
constexpr int kOldestVersion = NCCL_VERSION(2, 18, 1);

Library load() {
  const std::string name = fmt::format("libnccl.so.{}", NCCL_MAJOR);
  const SharedLibrary file(
      "NCCL", name, CHASKI_NCCL_PATH,
      fmt::format("LD_LIBRARY_PATH must lead to {}; one process does without", name));
  Library library{};
#define CHASKI_LOAD(name) file.find("nccl" #name, library.name)
  CHASKI_LOAD(GetVersion);
  int version = 0;
  library.GetVersion(&version);
  if (version < kOldestVersion) {
    throw std::runtime_error(fmt::format("NCCL {} is too old: {} or newer is needed",
                                         version_text(version), version_text(kOldestVersion)));
  }
  CHASKI_LOAD(GetErrorString);
  CHASKI_LOAD(GetLastError);
  CHASKI_LOAD(GetUniqueId);
  CHASKI_LOAD(CommInitRankConfig);
  CHASKI_LOAD(CommGetAsyncError);
  CHASKI_LOAD(CommFinalize);
  CHASKI_LOAD(CommDestroy);
  CHASKI_LOAD(CommAbort);
  CHASKI_LOAD(AllReduce);
  CHASKI_LOAD(Send);
  CHASKI_LOAD(Recv);
#undef CHASKI_LOAD
  return library;
}

}  // namespace

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

}  // namespace chaski::nccl
