#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/device_backend.h"
#include "kernels/device/tensor.h"

namespace chaski {

enum class Backend { cpu, cuda };

// What memory is for. Every allocation names one, so that use can be reported and asserted exactly.
enum class MemoryCategory {
  weights,
  gradients,
  optimizer,
  activations,
  workspace,
  communication,
};
inline constexpr int kNumMemoryCategories = 6;
const char* name_of(MemoryCategory category);

struct MemoryUsage {
  std::array<std::int64_t, kNumMemoryCategories> current_bytes{};
  std::array<std::int64_t, kNumMemoryCategories> peak_bytes{};

  std::int64_t current(MemoryCategory category) const {
    return current_bytes[static_cast<int>(category)];
  }
  std::int64_t peak(MemoryCategory category) const {
    return peak_bytes[static_cast<int>(category)];
  }
  std::int64_t total_current() const;
};

// Bytes that a device charges for a buffer of so many, and its workspace for a temporary tensor.
std::int64_t charged_bytes(std::int64_t bytes);

// Owns memory of a device; gives it back when destroyed. Movable only.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  bool empty() const { return tensor_.empty(); }
  const Tensor& tensor() const { return tensor_; }
  void release();

 private:
  friend class Device;
  Buffer(Tensor tensor, std::int64_t bytes, MemoryCategory category)
      : tensor_(tensor), bytes_(bytes), category_(category) {}

  Tensor tensor_;
  std::int64_t bytes_ = 0;  // as charged to the category: rounded up to the alignment
  MemoryCategory category_ = MemoryCategory::workspace;
};

// Temporary tensors in stack order. Grows while the first step runs, then never again: when the
// outermost frame closes, the blocks taken so far are merged into one of the largest size that was
// in use at a time.
class Workspace {
 public:
  class Frame {
   public:
    explicit Frame(Device& device);
    ~Frame();
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    // Not zeroed. Valid until the frame ends. Only the innermost open frame may take more: throws
    // std::logic_error for another.
    Tensor tensor(DType dtype, Shape shape);
    Tensor f32(Shape shape) { return tensor(DType::f32, shape); }

   private:
    Workspace& workspace_;
    std::size_t block_;
    std::int64_t offset_;
    std::int64_t used_;
    int depth_;
  };

  // Holds so many bytes from now on, so that tensors that take no more at a time make it grow no
  // further. With no frame open.
  void reserve(std::int64_t bytes);
  // The most bytes that temporary tensors ever took at a time.
  std::int64_t largest_used() const { return largest_used_; }
  // Frames that are opened at the same position, without an allocation of the device in between,
  // hand out the same memory.
  std::int64_t position() const { return (static_cast<std::int64_t>(block_) << 48) + offset_; }

 private:
  friend class Device;
  explicit Workspace(Device& device) : device_(device) {}
  void* take(std::int64_t bytes);
  void merge_blocks();

  Device& device_;
  std::vector<Buffer> blocks_;
  std::size_t block_ = 0;
  std::int64_t offset_ = 0;
  std::int64_t used_ = 0;          // bytes of the open frames' tensors
  std::int64_t largest_used_ = 0;  // the most that this ever was
  int open_frames_ = 0;
};

// Where tensors live and work is queued. Not thread-safe: one thread drives a device.
class Device {
 public:
  // A CPU device whose ops use `num_threads` OpenMP threads. 0: OMP_NUM_THREADS where set, else all
  // cores that this process may use (its affinity mask and its control group's quota).
  static std::unique_ptr<Device> create_cpu(int num_threads = 0);
  // The GPU `ordinal`. Ops are queued on one stream of it, in order; num_threads() is that of
  // create_cpu(0), for what the host does. Throws std::invalid_argument where the program was built
  // without CUDA, the driver is missing or too old, or there is no such GPU.
  static std::unique_ptr<Device> create_cuda(int ordinal);
  // A GPU that need not exist, to ask ops what they would take of it (their *_workspace_bytes): it
  // has no memory, and nothing can run on it. In a build without CUDA, too.
  static std::unique_ptr<Device> create_planned_gpu();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Backend backend() const { return backend_; }
  bool is_planned() const { return is_planned_; }
  int num_threads() const { return num_threads_; }
  // The hardware in a few words; empty for a CPU.
  std::string describe() const { return hardware_->describe(); }
  // Whether a GPU may multiply fp32 matrices with the 10 bits of mantissa of TF32. Off at first.
  bool allows_tf32() const { return allows_tf32_; }
  void allow_tf32(bool allow) { allows_tf32_ = allow; }
  // Whether ops that recur may be queued as a graph (kernels/device/op_graph.h). On at first.
  bool allows_graphs() const { return allows_graphs_; }
  void allow_graphs(bool allow) { allows_graphs_ = allow; }
  // Ops are queued one by one from now on, for this reason.
  void refuse_graphs(std::string reason);
  // Why graphs were given up; empty where they were not.
  const std::string& graph_refusal() const { return graph_refusal_; }
  // For the backend's own ops (kernels/device/cuda_context.h).
  DeviceBackend& hardware() { return *hardware_; }

  // Zeroed memory, aligned to kAlignment bytes. Throws std::runtime_error naming the category, the
  // size and what is in use when there is not enough.
  Buffer allocate(DType dtype, Shape shape, MemoryCategory category);
  const MemoryUsage& memory() const { return memory_; }
  // How often allocate() ran: constant after the first step.
  std::int64_t num_allocations() const { return num_allocations_; }

  Workspace& workspace() { return workspace_; }
  // Waits until everything queued is done (a no-op on the CPU). Throws std::runtime_error for what
  // failed on a GPU since the last call.
  void synchronize();

  static constexpr std::int64_t kAlignment = 64;

 private:
  friend class Buffer;
  Device(Backend backend, int num_threads, std::unique_ptr<DeviceBackend> hardware);
  void free(void* data, std::int64_t bytes, MemoryCategory category);

  Backend backend_;
  int num_threads_;
  bool is_planned_ = false;
  bool allows_tf32_ = false;
  bool allows_graphs_ = true;
  std::string graph_refusal_;
  std::unique_ptr<DeviceBackend> hardware_;
  MemoryUsage memory_;
  std::int64_t num_allocations_ = 0;
  Workspace workspace_;
};

}  // namespace chaski
