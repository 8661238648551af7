#include <algorithm>
#include <cstring>

#include "kernels/device/cuda_context.h"
#include "kernels/device/host_reader.h"

namespace chaski::cuda {
namespace {

class Reader final : public HostReader {
 public:
  explicit Reader(const Context& context) : ordinal_(context.ordinal()) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    // The GPU copies there by itself, without the driver's own staging.
    check(cudaMallocHost(&pinned_, static_cast<std::size_t>(kPinnedReaderBytes)),
          "pinning host memory");
    cudaEvent_t queued = nullptr;
    check(cudaEventCreateWithFlags(&queued, cudaEventDisableTiming), "creating an event");
    check(cudaEventRecord(queued, context.stream()), "recording an event");
    check(cudaStreamWaitEvent(stream_, queued, 0), "waiting for an event");
    check(cudaEventDestroy(queued), "destroying an event");
  }
  ~Reader() override {
    cudaStreamSynchronize(stream_);
    cudaFreeHost(pinned_);
    cudaStreamDestroy(stream_);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  void read(void* to, const void* from, std::int64_t bytes) override {
    check(cudaSetDevice(ordinal_), "choosing the device");  // of this thread
    for (std::int64_t done = 0; done < bytes; done += kPinnedReaderBytes) {
      const auto part = static_cast<std::size_t>(std::min(kPinnedReaderBytes, bytes - done));
      check(cudaMemcpyAsync(pinned_, static_cast<const char*>(from) + done, part,
                            cudaMemcpyDeviceToHost, stream_),
            "copying to the host");
      check(cudaStreamSynchronize(stream_), "copying to the host");
      std::memcpy(static_cast<char*>(to) + done, pinned_, part);
    }
  }

 private:
  int ordinal_;
  cudaStream_t stream_ = nullptr;
  void* pinned_ = nullptr;
};

}  // namespace

std::unique_ptr<HostReader> Context::create_reader() {
  return std::make_unique<Reader>(*this);
}

}  // namespace chaski::cuda
