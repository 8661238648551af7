#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/device/device_backend.h"

namespace chaski {
namespace {

// Where no process has memory, on x86-64 and on arm64: whoever uses such an address by mistake ends
// there, instead of working on what is not his.
constexpr std::intptr_t kFirstAddress = std::intptr_t{1} << 55;
constexpr std::int64_t kAllBytes = std::int64_t{1} << 55;

class ZeroReader final : public HostReader {
 public:
  void read(void* to, const void*, std::int64_t bytes) override {
    std::memset(to, 0, static_cast<std::size_t>(bytes));
  }
};

class IdleWriter final : public HostWriter {
 public:
  void write(const void*, const Tensor&) override {}
};

class CountingBackend final : public DeviceBackend {
 public:
  explicit CountingBackend(std::string description) : description_(std::move(description)) {}

  void* allocate(std::int64_t bytes) override {
    if (bytes > kAllBytes - used_) return nullptr;
    void* const data = reinterpret_cast<void*>(kFirstAddress + used_);
    used_ += bytes;
    return data;
  }
  void free(void*, std::int64_t) override {}  // an address is never given twice
  void synchronize() override {}
  std::unique_ptr<HostReader> create_reader() override { return std::make_unique<ZeroReader>(); }
  std::unique_ptr<HostWriter> create_writer() override { return std::make_unique<IdleWriter>(); }
  std::unique_ptr<OpRecording> create_recording() override { return nullptr; }
  std::string describe() const override { return description_; }

 private:
  std::string description_;
  std::int64_t used_ = 0;
};

}  // namespace

std::unique_ptr<DeviceBackend> create_counting_backend(std::string description) {
  return std::make_unique<CountingBackend>(std::move(description));
}

}  // namespace chaski
