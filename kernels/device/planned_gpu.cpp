#include <stdexcept>

#include "kernels/device/device.h"

namespace chaski {
namespace {

class PlannedGpu final : public DeviceBackend {
 public:
  void* allocate(std::int64_t) override { return nullptr; }
  void free(void*, std::int64_t) override {}
  void synchronize() override {}
  std::unique_ptr<HostReader> create_reader() override { refuse(); }
  std::unique_ptr<HostWriter> create_writer() override { refuse(); }
  std::unique_ptr<OpRecording> create_recording() override { return nullptr; }
  std::string describe() const override { return "one that is not here"; }

 private:
  [[noreturn]] static void refuse() {
    throw std::logic_error("a GPU that is only planned for is asked to work");
  }
};

}  // namespace

std::unique_ptr<Device> Device::create_planned_gpu() {
  std::unique_ptr<Device> device(new Device(Backend::cuda, 1, std::make_unique<PlannedGpu>()));
  device->is_planned_ = true;
  return device;
}

}  // namespace chaski
