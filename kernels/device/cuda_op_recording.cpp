#include <fmt/format.h>

#include "kernels/device/cuda_context.h"

namespace chaski::cuda {
namespace {

class Recording final : public OpRecording {
 public:
  explicit Recording(cudaStream_t stream) : stream_(stream) {}
  ~Recording() override { forget(); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void begin() override {
    forget();
    // Other threads, which copy checkpoints on streams of their own, may do what they like.
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a graph");
  }
  std::string end() override {
    cudaGraph_t graph = nullptr;
    cudaError_t status = cudaStreamEndCapture(stream_, &graph);
    if (status == cudaSuccess) {
      status = cudaGraphInstantiate(&executable_, graph, 0);
      cudaGraphDestroy(graph);
    }
    if (status == cudaSuccess) return "";
    executable_ = nullptr;
    cudaGetLastError();  // it would be reported again by the next launch
    return fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
  }
  void launch() override { check(cudaGraphLaunch(executable_, stream_), "launching a graph"); }

 private:
  // A graph that still runs is given up once it is done.
  void forget() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    executable_ = nullptr;
  }

  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

std::unique_ptr<OpRecording> Context::create_recording() {
  return std::make_unique<Recording>(stream_);
}

}  // namespace chaski::cuda
