#include "kernels/moc/products.h"

#include <algorithm>
#include <fmt/format.h>
#include <limits>
#include <stdexcept>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/moc/moc_cpu.h"
#include "kernels/moc/products_cpu.h"
#include "kernels/moc/shape.h"

namespace chaski {
namespace {

void require_cpu(const char* op, const Device& device) {
  if (device.backend() != Backend::cpu)
    throw std::invalid_argument(fmt::format("{}: runs on the CPU only", op));
}

void require_f32(const char* op, const char* name, const Tensor& tensor, std::int64_t rows,
                 std::int64_t cols) {
  require_matrix(op, name, tensor, rows, cols);
  require_dtype(op, name, tensor, DType::f32);
}

MocProductsProblem problem_of(const char* op, const Device& device, const MocShape& shape,
                              std::int64_t hidden, std::int64_t tokens) {
  require_moc_shape(op, shape);
  // Entries are counted in 32 bits.
  const std::int64_t most = std::numeric_limits<std::int32_t>::max() / shape.keep;
  if (tokens > most)
    throw std::invalid_argument(fmt::format(
        "{}: {} tokens that keep {} channels, must be {} at most", op, tokens, shape.keep, most));
  return {tokens,
          hidden,
          shape.intermediate_size,
          shape.keep,
          shape.index == MocIndex::bitmap,
          shape.index_bytes(),
          threads_for(device, tokens * shape.keep)};
}

// Of the kept channels with one of the three weights.
double product_flops(const MocProductsProblem& problem) {
  return 2.0 * static_cast<double>(problem.tokens * problem.keep) *
         static_cast<double>(problem.hidden);
}

void select(const Device& device, const MocShape& shape, const Tensor& gates, const MocKept& kept,
            std::int64_t tokens, float* scratch) {
  const MocProblem problem = moc_problem_of(shape);
  CHASKI_CPU_KERNELS(moc_kernels)
      .select(problem, gates.f32(), moc_rows_of(kept), scratch, tokens,
              threads_for(device, tokens * shape.intermediate_size));
}

// One tensor for both parts of the forward pass, which come one after the other.
std::int64_t forward_scratch_floats(const Device& device, const MocShape& shape,
                                    const MocProductsProblem& problem) {
  const MocProductsKernels& cpu = CHASKI_CPU_KERNELS(moc_products_kernels);
  const int threads = threads_for(device, problem.tokens * problem.size);
  const std::int64_t select =
      CHASKI_CPU_KERNELS(moc_kernels).scratch_floats(moc_problem_of(shape)) * threads;
  return std::max(select, cpu.forward_scratch_floats(problem));
}

}  // namespace

bool moc_products_pay(const Device& device, const MocShape& shape, std::int64_t hidden,
                      std::int64_t tokens) {
  constexpr std::int64_t kFewestTokens = 32;
  if (device.backend() != Backend::cpu || tokens < kFewestTokens) return false;
  const std::int64_t width = CHASKI_CPU_KERNELS(moc_products_kernels).width;
  const std::int64_t computed = (hidden + width - 1) / width * width;
  return 2 * shape.keep * computed <= shape.intermediate_size * hidden;
}

void moc_products_forward(const MocShape& shape, const Tensor& x, const Tensor& gates,
                          const MocWeights& weights, const MocKept& kept, const Tensor& out) {
  constexpr const char* kOp = "moc_products_forward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  require_cpu(kOp, device);
  const std::int64_t tokens = x.shape().num_rows();
  const std::int64_t hidden = x.shape().back();
  const std::int64_t size = shape.intermediate_size;
  const MocProductsProblem problem = problem_of(kOp, device, shape, hidden, tokens);
  require_f32(kOp, "x", x, tokens, hidden);
  require_f32(kOp, "gates", gates, tokens, size);
  require_f32(kOp, "weights.up", weights.up, size, hidden);
  require_f32(kOp, "weights.down", weights.down, hidden, size);
  require_moc_kept(kOp, shape, kept, tokens);
  if (out) {
    require_f32(kOp, "out", out, tokens, hidden);
    require_distinct(kOp, "out", out, "x", x);
    require_distinct(kOp, "out", out, "gates", gates);
  }
  Workspace::Frame frame(device);
  const Tensor scratch = frame.f32({forward_scratch_floats(device, shape, problem)});
  if (device.is_counting()) {
    return count_op(device, kOp,
                    {x, gates, weights.up, out ? weights.down : out, kept.gate, kept.up, kept.silu,
                     kept.product, kept.index, out},
                    (out ? 2.0 : 1.0) * product_flops(problem));
  }
  select(device, shape, gates, kept, tokens, scratch.f32());
  CHASKI_CPU_KERNELS(moc_products_kernels)
      .forward(problem, x.f32(), {nullptr, weights.up.f32(), weights.down.f32()}, moc_rows_of(kept),
               out.f32(), scratch.f32());
}

void moc_products_backward(const MocShape& shape, const Tensor& dout, const Tensor& x,
                           const MocWeights& weights, const MocKept& kept,
                           const MocWeights& gradients, const Tensor& dx) {
  constexpr const char* kOp = "moc_products_backward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, dout);
  require_cpu(kOp, device);
  const std::int64_t tokens = dout.shape().num_rows();
  const std::int64_t hidden = dout.shape().back();
  const std::int64_t size = shape.intermediate_size;
  const MocProductsProblem problem = problem_of(kOp, device, shape, hidden, tokens);
  require_f32(kOp, "dout", dout, tokens, hidden);
  if (gradients.gate || gradients.up) require_f32(kOp, "x", x, tokens, hidden);
  require_f32(kOp, "weights.gate", weights.gate, size, hidden);
  require_f32(kOp, "weights.up", weights.up, size, hidden);
  require_f32(kOp, "weights.down", weights.down, hidden, size);
  require_moc_kept(kOp, shape, kept, tokens);
  if (gradients.gate) require_f32(kOp, "gradients.gate", gradients.gate, size, hidden);
  if (gradients.up) require_f32(kOp, "gradients.up", gradients.up, size, hidden);
  if (gradients.down) require_f32(kOp, "gradients.down", gradients.down, hidden, size);
  require_f32(kOp, "dx", dx, tokens, hidden);
  Workspace::Frame frame(device);
  const Tensor scratch =
      frame.f32({CHASKI_CPU_KERNELS(moc_products_kernels).backward_scratch_floats(problem)});
  if (device.is_counting()) {
    // Through each of the three weights, and to those that learn.
    double products = 3.0;
    for (const Tensor* gradient : {&gradients.gate, &gradients.up, &gradients.down})
      products += gradient->empty() ? 0.0 : 1.0;
    return count_op(device, kOp,
                    {dout, x, weights.gate, weights.up, weights.down, kept.gate, kept.up,
                     kept.index, gradients.gate, gradients.gate, gradients.up, gradients.up,
                     gradients.down, gradients.down, dx},
                    products * product_flops(problem));
  }
  CHASKI_CPU_KERNELS(moc_products_kernels)
      .backward(problem, dout.f32(), x.f32(),
                {weights.gate.f32(), weights.up.f32(), weights.down.f32()}, moc_rows_of(kept),
                {gradients.gate.f32(), gradients.up.f32(), gradients.down.f32()}, dx.f32(),
                scratch.f32());
}

}  // namespace chaski
