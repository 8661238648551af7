#include <cstring>

#include "kernels/device/cuda_context.h"
#include "kernels/device/host_writer.h"

namespace chaski::cuda {
namespace {

class Writer final : public HostWriter {
 public:
  explicit Writer(const Context& context) : stream_(context.stream()) {
    check(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "creating an event");
  }
  ~Writer() override {
    cudaEventSynchronize(copied_);
    cudaFreeHost(pinned_);
    cudaEventDestroy(copied_);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void write(const void* from, const Tensor& to) override {
    const auto bytes = static_cast<std::size_t>(to.num_bytes());
    check(cudaEventSynchronize(copied_), "copying to the device");
    reserve(bytes);
    std::memcpy(pinned_, from, bytes);
    check(cudaMemcpyAsync(to.raw(), pinned_, bytes, cudaMemcpyHostToDevice, stream_),
          "copying to the device");
    check(cudaEventRecord(copied_, stream_), "recording an event");
  }

 private:
  void reserve(std::size_t bytes) {
    if (bytes <= capacity_) return;
    cudaFreeHost(pinned_);
    pinned_ = nullptr;
    capacity_ = 0;
    check(cudaMallocHost(&pinned_, bytes), "pinning host memory");
    capacity_ = bytes;
  }

  cudaStream_t stream_;
  cudaEvent_t copied_ = nullptr;
  void* pinned_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace

std::unique_ptr<HostWriter> Context::create_writer() {
  return std::make_unique<Writer>(*this);
}

}  // namespace chaski::cuda
