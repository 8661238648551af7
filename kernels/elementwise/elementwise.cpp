#include "kernels/elementwise/elementwise.h"

#include <cstring>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/elementwise/elementwise_cpu.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace chaski {
namespace {

using BlockSums = void (*)(const float* x, double* partial_sums, std::int64_t count, int threads);

std::int64_t num_partial_sums(std::int64_t count) {
  return (count + kReductionBlock - 1) / kReductionBlock;
}

// Of the sum of so many elements.
std::int64_t sum_workspace_bytes(const Device& device, std::int64_t count) {
  constexpr auto kDouble = static_cast<std::int64_t>(sizeof(double));
  if (device.backend() == Backend::cpu) return charged_bytes(num_partial_sums(count) * kDouble);
  return charged_bytes(kDouble) + charged_bytes(cuda::num_partial_sums(count) * kDouble);
}

double count_sum(Device& device, const char* op, const Tensor& x) {
  count_op(device, op, {x}, 0.0, sum_workspace_bytes(device, x.num_elements()));
  return 0.0;
}

double reduce(Device& device, BlockSums block_sums, const Tensor& x) {
  const std::int64_t count = x.num_elements();
  const std::int64_t num_blocks = num_partial_sums(count);
  Workspace::Frame frame(device);
  auto* partial_sums = frame.tensor(DType::f64, {num_blocks}).as<double>();
  block_sums(x.f32(), partial_sums, count, threads_for(device, count));
  double total = 0.0;
  for (std::int64_t block = 0; block < num_blocks; ++block) total += partial_sums[block];
  return total;
}

}  // namespace

void fill(const Tensor& out, float value) {
  constexpr const char* kOp = "fill";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, out);
  const std::int64_t count = out.num_elements();
  if (device.is_counting()) return count_op(device, kOp, {out});
  CHASKI_CUDA_OP(device, fill(out, value));
  CHASKI_CPU_KERNELS(elementwise_kernels).fill(out.f32(), value, count, threads_for(device, count));
}

void copy_from_host(const void* from, const Tensor& to) {
  Device& device = device_of("copy_from_host", to);
  if (device.is_counting()) return;
  CHASKI_CUDA_OP(device, copy_from_host(from, to));
  std::memcpy(to.raw(), from, static_cast<std::size_t>(to.num_bytes()));
}

void copy_to_host(const Tensor& from, void* to) {
  Device& device = device_of("copy_to_host", from);
  const auto bytes = static_cast<std::size_t>(from.num_bytes());
  if (device.is_counting()) {
    std::memset(to, 0, bytes);
    return;
  }
  CHASKI_CUDA_OP(device, copy_to_host(from, to));
  std::memcpy(to, from.raw(), bytes);
}

void copy(const Tensor& from, const Tensor& to) {
  constexpr const char* kOp = "copy";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, from);
  require_elements(kOp, "to", to, from.num_elements());
  require_dtype(kOp, "to", to, from.dtype());
  if (from.raw() == to.raw()) return;
  require_distinct(kOp, "from", from, "to", to);
  if (device.is_counting()) return count_op(device, kOp, {from, to});
  CHASKI_CUDA_OP(device, copy(from, to));
  CHASKI_CPU_KERNELS(elementwise_kernels)
      .copy(static_cast<const char*>(from.raw()), static_cast<char*>(to.raw()), from.num_bytes(),
            threads_for(device, from.num_elements()));
}

void add(const Tensor& a, const Tensor& b, const Tensor& out) {
  constexpr const char* kOp = "add";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, a);
  const std::int64_t count = a.num_elements();
  require_elements(kOp, "b", b, count);
  require_elements(kOp, "out", out, count);
  if (device.is_counting()) return count_op(device, kOp, {a, b, out});
  CHASKI_CUDA_OP(device, add(a, b, out));
  CHASKI_CPU_KERNELS(elementwise_kernels)
      .add(a.f32(), b.f32(), out.f32(), count, threads_for(device, count));
}

void scale(const Tensor& x, float factor) {
  constexpr const char* kOp = "scale";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  const std::int64_t count = x.num_elements();
  if (device.is_counting()) return count_op(device, kOp, {x, x});
  CHASKI_CUDA_OP(device, scale(x, factor));
  CHASKI_CPU_KERNELS(elementwise_kernels).scale(x.f32(), factor, count, threads_for(device, count));
}

void cast(const Tensor& from, const Tensor& to) {
  constexpr const char* kOp = "cast";
  Device& device = device_of(kOp, from);
  const std::int64_t count = from.num_elements();
  require_elements(kOp, "to", to, count);
  if (from.dtype() == to.dtype()) return copy(from, to);
  const bool narrows = from.dtype() == DType::f32;
  require_dtype(kOp, "from", from, narrows ? DType::f32 : DType::bf16);
  require_dtype(kOp, "to", to, narrows ? DType::bf16 : DType::f32);
  require_distinct(kOp, "from", from, "to", to);
  const ProfileScope scope(kOp);
  if (device.is_counting()) return count_op(device, kOp, {from, to});
  CHASKI_CUDA_OP(device, cast(from, to));
  const ElementwiseKernels& cpu = CHASKI_CPU_KERNELS(elementwise_kernels);
  const int threads = threads_for(device, count);
  if (narrows) {
    cpu.to_bf16(from.f32(), to.as<std::uint16_t>(), count, threads);
  } else {
    cpu.from_bf16(from.as<std::uint16_t>(), to.f32(), count, threads);
  }
}

double sum_of_squares(const Tensor& x) {
  constexpr const char* kOp = "sum_of_squares";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  if (device.is_counting()) return count_sum(device, kOp, x);
  CHASKI_CUDA_OP(device, sum_of_squares(x));
  return reduce(device, CHASKI_CPU_KERNELS(elementwise_kernels).sum_of_squares, x);
}

double sum(const Tensor& x) {
  constexpr const char* kOp = "sum";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  if (device.is_counting()) return count_sum(device, kOp, x);
  CHASKI_CUDA_OP(device, sum(x));
  return reduce(device, CHASKI_CPU_KERNELS(elementwise_kernels).sum, x);
}

std::int64_t count_nonfinite(const Tensor& x) {
  constexpr const char* kOp = "count_nonfinite";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  const std::int64_t count = x.num_elements();
  if (device.is_counting()) {
    count_op(device, kOp, {x});
    return 0;
  }
  CHASKI_CUDA_OP(device, count_nonfinite(x));
  return CHASKI_CPU_KERNELS(elementwise_kernels)
      .count_nonfinite(x.f32(), count, threads_for(device, count));
}

void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream) {
  constexpr const char* kOp = "fill_normal";
  Device& device = device_of(kOp, out);
  if (device.is_counting()) return count_op(device, kOp, {out});
  CHASKI_CUDA_OP(device, fill_normal(out, mean, standard_deviation, seed, stream));
  const std::int64_t count = out.num_elements();
  CHASKI_CPU_KERNELS(normal_kernels)
      .fill(out.f32(), count, mean, standard_deviation, seed, stream, threads_for(device, count));
}

}  // namespace chaski
