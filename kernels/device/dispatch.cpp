#include "kernels/device/dispatch.h"

#include <fmt/format.h>
#include <functional>
#include <stdexcept>

namespace chaski {
namespace {

// A parallel region costs 2 to 5 µs, which is what one core needs for about this many elements.
constexpr std::int64_t kMinElementsPerThread = 8192;

}  // namespace

Device& device_of(const char* op, const Tensor& operand) {
  if (operand.empty()) throw std::invalid_argument(fmt::format("{}: an operand is empty", op));
  return operand.device();
}

void require_matrix(const char* op, const char* name, const Tensor& tensor, std::int64_t rows,
                    std::int64_t cols) {
  if (!tensor.empty() && tensor.num_elements() == rows * cols && tensor.shape().back() == cols)
    return;
  throw std::invalid_argument(fmt::format("{}: {} is {}, expected [{}, {}]", op, name,
                                          tensor.empty() ? "empty" : tensor.shape().to_string(),
                                          rows, cols));
}

void require_elements(const char* op, const char* name, const Tensor& tensor, std::int64_t count) {
  if (!tensor.empty() && tensor.num_elements() == count) return;
  throw std::invalid_argument(fmt::format("{}: {} is {}, expected {} elements", op, name,
                                          tensor.empty() ? "empty" : tensor.shape().to_string(),
                                          count));
}

void require_dtype(const char* op, const char* name, const Tensor& tensor, DType dtype) {
  if (tensor.dtype() == dtype) return;
  throw std::invalid_argument(
      fmt::format("{}: {} is {}, expected {}", op, name, name_of(tensor.dtype()), name_of(dtype)));
}

void require_distinct(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                      const Tensor& b) {
  if (a.empty() || b.empty()) return;
  const auto* begin_a = static_cast<const char*>(a.raw());
  const auto* begin_b = static_cast<const char*>(b.raw());
  const std::less<const char*> before;
  const bool apart =
      !before(begin_a, begin_b + b.num_bytes()) || !before(begin_b, begin_a + a.num_bytes());
  if (!apart)
    throw std::invalid_argument(fmt::format("{}: {} and {} share memory", op, name_a, name_b));
}

void count_op(Device& device, const char* op, std::initializer_list<Tensor> operands, double flops,
              std::int64_t workspace_bytes) {
  double bytes = 0.0;
  for (const Tensor& operand : operands) bytes += static_cast<double>(operand.num_bytes());
  count_op(device, {op, {}, 1, flops, bytes}, workspace_bytes);
}

void count_op(Device& device, const OpCount& count, std::int64_t workspace_bytes) {
  Workspace::Frame frame(device);
  if (workspace_bytes > 0) frame.tensor(DType::u8, {workspace_bytes});
  device.add_op_count(count);
}

void require_memory(const Device& device) {
  if (device.is_counting()) throw std::logic_error("a device that only counts is asked to work");
}

int threads_for(const Device& device, std::int64_t elements) {
  return elements >= 2 * kMinElementsPerThread ? device.num_threads() : 1;
}

}  // namespace chaski
