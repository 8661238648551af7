#include "kernels/cudnn_library.h"

#include <array>
#include <dlfcn.h>
#include <fmt/format.h>
#include <stdexcept>
#include <string_view>

namespace chaski::cuda {
namespace {

template <typename Function>
void find(void* file, const char* name, Function& function) {
  void* const found = dlsym(file, name);
  if (found == nullptr)
    throw std::runtime_error(fmt::format("cuDNN has no {}: {}", name, dlerror()));
  function = reinterpret_cast<Function>(found);
}

// Never closed: it keeps threads and GPU memory of its own.
void* open_file() {
  const std::string name = fmt::format("libcudnn.so.{}", CUDNN_MAJOR);
  void* file = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* const refusal = file == nullptr ? dlerror() : nullptr;
  const std::string reason = refusal == nullptr ? "" : refusal;
  // Where it was when this was built.
  if (file == nullptr) file = dlopen(CHASKI_CUDNN_PATH, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) throw std::runtime_error("cuDNN cannot be loaded: " + reason);
  return file;
}

CudnnFunctions load() {
  void* const file = open_file();
  CudnnFunctions functions{};
#define CHASKI_LOAD(name) find(file, "cudnn" #name, functions.name)
  CHASKI_LOAD(BackendCreateDescriptor);
  CHASKI_LOAD(BackendDestroyDescriptor);
  CHASKI_LOAD(BackendExecute);
  CHASKI_LOAD(BackendFinalize);
  CHASKI_LOAD(BackendGetAttribute);
  CHASKI_LOAD(BackendSetAttribute);
  CHASKI_LOAD(Create);
  CHASKI_LOAD(Destroy);
  CHASKI_LOAD(GetErrorString);
  CHASKI_LOAD(GetLastErrorString);
  CHASKI_LOAD(GetVersion);
  CHASKI_LOAD(SetStream);
#undef CHASKI_LOAD
  return functions;
}

}  // namespace

const CudnnFunctions& cudnn() {
  static const CudnnFunctions loaded = load();
  return loaded;
}

std::string cudnn_version_text(std::size_t version) {
  return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::string cudnn_reason() {
  std::array<char, 4096> words{};
  cudnn().GetLastErrorString(words.data(), words.size());
  // Where an error has passed through several functions each has a line, the first one first.
  std::string_view text = words.data();
  constexpr std::string_view kReason = "Reason: ";
  if (const auto begin = text.find(kReason); begin != text.npos)
    text.remove_prefix(begin + kReason.size());
  if (text.starts_with('{')) return {};  // an engine's settings without a reason
  return std::string(text.substr(0, text.find('\n')));
}

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  const std::string reason = cudnn_reason();
  throw std::runtime_error(fmt::format("cuDNN: {} failed: {}{}{}", what,
                                       cudnn().GetErrorString(status), reason.empty() ? "" : ": ",
                                       reason));
}

}  // namespace chaski::cuda
