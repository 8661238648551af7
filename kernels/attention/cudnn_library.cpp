#include "kernels/attention/cudnn_library.h"

#include <array>
#include <fmt/format.h>
#include <stdexcept>
#include <string_view>

#include "kernels/device/shared_library.h"

namespace chaski::cuda {
namespace {

CudnnFunctions load() {
  const SharedLibrary library("cuDNN", fmt::format("libcudnn.so.{}", CUDNN_MAJOR),
                              CHASKI_CUDNN_PATH);
  CudnnFunctions functions{};
#define CHASKI_LOAD(name) library.find("cudnn" #name, functions.name)
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
