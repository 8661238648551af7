#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/device_backend.h"
#include "kernels/device/op_count.h"
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

// The buffers of a category that serve one purpose, e.g. "query, key, value".
struct MemoryPart {
  MemoryCategory category;
  const char* purpose;
  std::int64_t bytes;  // now
};

// The most that the workspace held during one part of the work, e.g. "head and loss".
struct WorkspacePhase {
  const char* name;
  std::int64_t bytes;
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
  Buffer(Tensor tensor, std::int64_t bytes, std::size_t part)
      : tensor_(tensor), bytes_(bytes), part_(part) {}

  Tensor tensor_;
  std::int64_t bytes_ = 0;  // as charged to the category: rounded up to the alignment
  std::size_t part_ = 0;    // of the device's memory_parts()
};

// Temporary tensors in stack order. Grows while the first step runs, then never again: when the
// outermost frame closes, the blocks taken so far are merged into one of the largest size that was
// in use at a time.
class Workspace {
 public:
  class Frame {
   public:
    // `phase`, a string literal: what the tensors of this frame and of those inside it are for,
    // unless they name another.
    explicit Frame(Device& device, const char* phase = nullptr);
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
    std::size_t phase_;
    int depth_;
  };

  // Holds so many bytes from now on, so that tensors that take no more at a time make it grow no
  // further. With no frame open.
  void reserve(std::int64_t bytes);
  // The most bytes that temporary tensors ever took at a time.
  std::int64_t largest_used() const { return largest_used_; }
  // The same of each phase that a frame named, in the order of their first tensors.
  const std::vector<WorkspacePhase>& phases() const { return phases_; }
  // Frames that are opened at the same position, without an allocation of the device in between,
  // hand out the same memory.
  std::int64_t position() const { return (static_cast<std::int64_t>(block_) << 48) + offset_; }

 private:
  friend class Device;
  explicit Workspace(Device& device) : device_(device) {}
  void* take(std::int64_t bytes);
  void merge_blocks();
  std::size_t index_of(const char* phase);

  Device& device_;
  std::vector<Buffer> blocks_;
  std::size_t block_ = 0;
  std::int64_t offset_ = 0;
  std::int64_t used_ = 0;          // bytes of the open frames' tensors
  std::int64_t largest_used_ = 0;  // the most that this ever was
  static constexpr std::size_t kNoPhase = static_cast<std::size_t>(-1);
  std::vector<WorkspacePhase> phases_;
  std::size_t phase_ = kNoPhase;  // of the innermost open frame that names one
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
  // A device that only counts, of a kind that need not be here (GPUs also in a build without CUDA):
  // what is allocated has addresses that nobody may read or write, and ops, after their checks,
  // take and return their workspace and state their work (op_counts) instead of doing it. What
  // comes back to the host is zeros. `num_threads` as for create_cpu. Of a GPU, what cuDNN would
  // take of the workspace is left out.
  static std::unique_ptr<Device> create_counting(Backend backend, int num_threads);
  // One of the same kind as `model`, whose libraries ops ask what they would take; not to outlive
  // it.
  static std::unique_ptr<Device> create_counting(Device& model);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Backend backend() const { return backend_; }
  bool is_counting() const { return is_counting_; }
  // Whom libraries are to be asked about on a counting device; null: the hardware is not here.
  Device* counted_model() const { return counted_model_; }
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

  // Zeroed memory, aligned to kAlignment bytes. `purpose`, a string literal, for memory_parts();
  // null: the category's name. Throws std::runtime_error naming the category, the size and what is
  // in use when there is not enough.
  Buffer allocate(DType dtype, Shape shape, MemoryCategory category, const char* purpose = nullptr);
  const MemoryUsage& memory() const { return memory_; }
  // The same by purpose, in the order of their first buffers.
  const std::vector<MemoryPart>& memory_parts() const { return memory_parts_; }
  // How often allocate() ran: constant after the first step.
  std::int64_t num_allocations() const { return num_allocations_; }

  Workspace& workspace() { return workspace_; }
  // Waits until everything queued is done (a no-op on the CPU). Throws std::runtime_error for what
  // failed on a GPU since the last call.
  void synchronize();

  // What ops would have done since the last clear_op_counts(), on a counting device.
  const std::vector<OpCount>& op_counts() const { return op_counts_; }
  void add_op_count(OpCount count);
  void clear_op_counts() { op_counts_.clear(); }
  // Ops count so many times from now on: for rounds of a loop that are alike.
  void repeat_op_counts(std::int64_t times) { op_repetitions_ = times; }
  std::int64_t op_repetitions() const { return op_repetitions_; }

  static constexpr std::int64_t kAlignment = 64;

 private:
  friend class Buffer;
  Device(Backend backend, int num_threads, std::unique_ptr<DeviceBackend> hardware);
  void free(void* data, std::int64_t bytes, std::size_t part);
  std::size_t part_of(MemoryCategory category, const char* purpose);

  Backend backend_;
  int num_threads_;
  bool is_counting_ = false;
  Device* counted_model_ = nullptr;
  bool allows_tf32_ = false;
  bool allows_graphs_ = true;
  std::string graph_refusal_;
  std::unique_ptr<DeviceBackend> hardware_;
  MemoryUsage memory_;
  std::vector<MemoryPart> memory_parts_;
  std::vector<OpCount> op_counts_;
  std::int64_t op_repetitions_ = 1;
  std::int64_t num_allocations_ = 0;
  Workspace workspace_;
};

}  // namespace chaski
