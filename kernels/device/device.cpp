#include "kernels/device/device.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <limits>
#include <omp.h>
#include <stdexcept>
#include <utility>

#include "kernels/device/cpu_memory.h"

namespace chaski {
namespace {

// By the numbers of MemoryCategory.
constexpr const char* kCategoryNames[kNumMemoryCategories] = {
    "weights", "gradients", "optimizer", "activations", "workspace", "communication"};

// More could not be started with OpenMP's usual stacks.
constexpr int kMaxThreads = 1024;

// A workspace grows by at least this much, so that the first step takes few blocks.
constexpr std::int64_t kMinWorkspaceBlock = std::int64_t{1} << 20;

std::string mebibytes(std::int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string describe_use(const MemoryUsage& usage) {
  std::string text;
  for (std::size_t i = 0; i < usage.current_bytes.size(); ++i) {
    if (usage.current_bytes[i] == 0) continue;
    if (!text.empty()) text += ", ";
    text += fmt::format("{} {}", kCategoryNames[i], mebibytes(usage.current_bytes[i]));
  }
  return text.empty() ? "nothing" : text;
}

// What the control group (a container's limit) lets this process use: "max 100000" or
// "200000 100000", microseconds in each period. No limit where there is no such file.
int cores_of_control_group() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0.0;
  double period = 0.0;
  if (!(file >> quota >> period) || quota <= 0.0 || period <= 0.0)
    return std::numeric_limits<int>::max();
  return static_cast<int>(std::clamp(std::ceil(quota / period), 1.0, 1e6));
}

// Asked before anything sets another number: OpenMP's own default comes from OMP_NUM_THREADS or
// else from the process's affinity mask.
int default_num_threads() {
  static const int threads = [] {
    const int cores = std::max(1, omp_get_max_threads());
    const bool user_chose = std::getenv("OMP_NUM_THREADS") != nullptr;
    return user_chose ? cores : std::min(cores, cores_of_control_group());
  }();
  return threads;
}

int threads_from(int num_threads) {
  if (num_threads < 0 || num_threads > kMaxThreads)
    throw std::invalid_argument(fmt::format(
        "the number of threads is {}: it can be 0 (all cores) to {}", num_threads, kMaxThreads));
  const int all = default_num_threads();
  return num_threads == 0 ? all : num_threads;
}

class CpuReader final : public HostReader {
 public:
  void read(void* to, const void* from, std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
};

class CpuWriter final : public HostWriter {
 public:
  void write(const void* from, const Tensor& to) override {
    std::memcpy(to.raw(), from, static_cast<std::size_t>(to.num_bytes()));
  }
};

class CpuMemory final : public DeviceBackend {
 public:
  void* allocate(std::int64_t bytes) override { return allocate_cpu_memory(bytes); }
  void free(void* data, std::int64_t bytes) override { free_cpu_memory(data, bytes); }
  void synchronize() override {}
  std::unique_ptr<HostReader> create_reader() override { return std::make_unique<CpuReader>(); }
  std::unique_ptr<HostWriter> create_writer() override { return std::make_unique<CpuWriter>(); }
  std::unique_ptr<OpRecording> create_recording() override { return nullptr; }
  std::string describe() const override { return ""; }
};

}  // namespace

std::int64_t charged_bytes(std::int64_t bytes) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max() - Device::kAlignment;
  if (bytes > kLargest) throw std::invalid_argument(fmt::format("{} bytes are too many", bytes));
  const std::int64_t units = (bytes + Device::kAlignment - 1) / Device::kAlignment;
  return std::max<std::int64_t>(units, 1) * Device::kAlignment;
}

std::unique_ptr<HostReader> create_host_reader(Device& device) {
  return device.hardware().create_reader();
}

std::unique_ptr<HostWriter> create_host_writer(Device& device) {
  return device.hardware().create_writer();
}

const char* name_of(MemoryCategory category) {
  return kCategoryNames[static_cast<std::size_t>(category)];
}

std::int64_t MemoryUsage::total_current() const {
  std::int64_t total = 0;
  for (const std::int64_t bytes : current_bytes) total += bytes;
  return total;
}

Buffer::Buffer(Buffer&& other) noexcept
    : tensor_(std::exchange(other.tensor_, Tensor())),
      bytes_(std::exchange(other.bytes_, 0)),
      part_(other.part_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  tensor_ = std::exchange(other.tensor_, Tensor());
  bytes_ = std::exchange(other.bytes_, 0);
  part_ = other.part_;
  return *this;
}

Buffer::~Buffer() {
  release();
}

void Buffer::release() {
  if (empty()) return;
  tensor_.device().free(tensor_.raw(), bytes_, part_);
  tensor_ = Tensor();
  bytes_ = 0;
}

Device::Device(Backend backend, int num_threads, std::unique_ptr<DeviceBackend> hardware)
    : backend_(backend),
      num_threads_(num_threads),
      hardware_(std::move(hardware)),
      workspace_(*this) {}

Device::~Device() = default;

std::unique_ptr<Device> Device::create_cpu(int num_threads) {
  const int threads = threads_from(num_threads);
  // For libraries (oneDNN), which ask OpenMP; the kernels name the number themselves.
  omp_set_dynamic(0);
  omp_set_num_threads(threads);
  return std::unique_ptr<Device>(new Device(Backend::cpu, threads, std::make_unique<CpuMemory>()));
}

std::unique_ptr<Device> Device::create_cuda(int ordinal) {
  return std::unique_ptr<Device>(
      new Device(Backend::cuda, default_num_threads(), create_cuda_backend(ordinal)));
}

std::unique_ptr<Device> Device::create_counting(Backend backend, int num_threads) {
  const char* description = backend == Backend::cpu ? "" : "one that is not here";
  std::unique_ptr<Device> device(
      new Device(backend, threads_from(num_threads), create_counting_backend(description)));
  device->is_counting_ = true;
  device->allows_graphs_ = false;
  return device;
}

std::unique_ptr<Device> Device::create_counting(Device& model) {
  std::unique_ptr<Device> device = create_counting(model.backend(), model.num_threads());
  device->counted_model_ = model.is_counting() ? model.counted_model() : &model;
  return device;
}

std::size_t Device::part_of(MemoryCategory category, const char* purpose) {
  if (purpose == nullptr) purpose = name_of(category);
  std::size_t part = 0;
  while (part < memory_parts_.size() && (memory_parts_[part].category != category ||
                                         std::strcmp(memory_parts_[part].purpose, purpose) != 0)) {
    ++part;
  }
  if (part == memory_parts_.size()) memory_parts_.push_back({category, purpose, 0});
  return part;
}

void Device::add_op_count(OpCount count) {
  count.calls *= op_repetitions_;
  count.flops *= static_cast<double>(op_repetitions_);
  count.bytes *= static_cast<double>(op_repetitions_);
  for (OpCount& known : op_counts_) {
    if (known.shape != count.shape || std::strcmp(known.op, count.op) != 0) continue;
    known.calls += count.calls;
    known.flops += count.flops;
    known.bytes += count.bytes;
    return;
  }
  op_counts_.push_back(count);
}

Buffer Device::allocate(DType dtype, Shape shape, MemoryCategory category, const char* purpose) {
  const std::int64_t bytes = charged_bytes(shape.num_elements() * size_of(dtype));
  void* data = hardware_->allocate(bytes);
  if (data == nullptr)
    throw std::runtime_error(
        fmt::format("not enough memory on the {} for {} of {} (in use: {})\nhint: a smaller "
                    "micro-batch or a recomputing model needs less; `chaski plan` shows what takes "
                    "how much",
                    backend_ == Backend::cuda ? "GPU" : "machine", mebibytes(bytes),
                    name_of(category), describe_use(memory_)));
  const auto index = static_cast<std::size_t>(category);
  std::int64_t& current = memory_.current_bytes[index];
  current += bytes;
  memory_.peak_bytes[index] = std::max(memory_.peak_bytes[index], current);
  ++num_allocations_;
  const std::size_t part = part_of(category, purpose);
  memory_parts_[part].bytes += bytes;
  return Buffer(Tensor(*this, dtype, shape, data), bytes, part);
}

void Device::free(void* data, std::int64_t bytes, std::size_t part) {
  memory_parts_[part].bytes -= bytes;
  memory_.current_bytes[static_cast<std::size_t>(memory_parts_[part].category)] -= bytes;
  hardware_->free(data, bytes);
}

void Device::refuse_graphs(std::string reason) {
  allows_graphs_ = false;
  graph_refusal_ = std::move(reason);
}

void Device::synchronize() {
  hardware_->synchronize();
}

std::size_t Workspace::index_of(const char* phase) {
  std::size_t index = 0;
  while (index < phases_.size() && std::strcmp(phases_[index].name, phase) != 0) ++index;
  if (index == phases_.size()) phases_.push_back({phase, 0});
  return index;
}

Workspace::Frame::Frame(Device& device, const char* phase)
    : workspace_(device.workspace()),
      block_(workspace_.block_),
      offset_(workspace_.offset_),
      used_(workspace_.used_),
      phase_(workspace_.phase_),
      depth_(++workspace_.open_frames_) {
  if (phase != nullptr) workspace_.phase_ = workspace_.index_of(phase);
}

Workspace::Frame::~Frame() {
  workspace_.block_ = block_;
  workspace_.offset_ = offset_;
  workspace_.used_ = used_;
  workspace_.phase_ = phase_;
  if (--workspace_.open_frames_ == 0) workspace_.merge_blocks();
}

Tensor Workspace::Frame::tensor(DType dtype, Shape shape) {
  if (depth_ != workspace_.open_frames_)
    throw std::logic_error("a workspace frame is asked for memory while an inner one is open");
  const std::int64_t bytes = charged_bytes(shape.num_elements() * size_of(dtype));
  return Tensor(workspace_.device_, dtype, shape, workspace_.take(bytes));
}

void* Workspace::take(std::int64_t bytes) {
  while (block_ < blocks_.size() && offset_ + bytes > blocks_[block_].tensor().num_bytes()) {
    ++block_;
    offset_ = 0;
  }
  if (block_ == blocks_.size())
    blocks_.push_back(device_.allocate(DType::u8, {std::max(bytes, kMinWorkspaceBlock)},
                                       MemoryCategory::workspace));
  void* data = blocks_[block_].tensor().as<std::uint8_t>() + offset_;
  offset_ += bytes;
  used_ += bytes;
  largest_used_ = std::max(largest_used_, used_);
  if (phase_ != kNoPhase) {
    std::int64_t& most = phases_[phase_].bytes;
    most = std::max(most, used_);
  }
  return data;
}

void Workspace::reserve(std::int64_t bytes) {
  if (open_frames_ > 0) throw std::logic_error("a workspace in use is asked to hold more");
  if (!blocks_.empty() && blocks_.front().tensor().num_bytes() >= bytes) return;
  blocks_.clear();
  blocks_.push_back(device_.allocate(DType::u8, {std::max(bytes, kMinWorkspaceBlock)},
                                     MemoryCategory::workspace));
}

// The old blocks go first, so that the new one does not raise the peak. A failure here only means
// that the next frame asks again.
void Workspace::merge_blocks() {
  if (blocks_.size() < 2) return;
  blocks_.clear();
  try {
    blocks_.push_back(device_.allocate(DType::u8, {largest_used_}, MemoryCategory::workspace));
  } catch (const std::runtime_error&) {
    blocks_.clear();
  }
}

}  // namespace chaski
