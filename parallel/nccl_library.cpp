#include "parallel/nccl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <stdexcept>

namespace chaski::nccl {
namespace {

// Communicators whose calls do not block have all that is used here since then.
constexpr int kOldestVersion = NCCL_VERSION(2, 18, 1);

template <typename Function>
void find(void* file, const char* name, Function& function) {
  void* const found = dlsym(file, name);
  if (found == nullptr) {
    throw std::runtime_error(fmt::format("NCCL has no {}: {}", name, dlerror()));
  }
  function = reinterpret_cast<Function>(found);
}

// Never closed: it keeps threads and GPU memory of its own.
void* open_file() {
  const std::string name = fmt::format("libnccl.so.{}", NCCL_MAJOR);
  void* file = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  // Where it was when this was built.
  if (file == nullptr) file = dlopen(CHASKI_NCCL_PATH, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) {
    throw std::runtime_error(
        fmt::format("NCCL cannot be loaded: {}\nhint: LD_LIBRARY_PATH must lead to {}; one process "
                    "does without",
                    dlerror(), name));
  }
  return file;
}

Library load() {
  void* const file = open_file();
  Library library{};
#define CHASKI_LOAD(name) find(file, "nccl" #name, library.name)
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
