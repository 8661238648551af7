#include "kernels/moc/moc.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/moc/moc_cpu.h"
#include "kernels/moc/moc_cuda.h"
#include "kernels/moc/shape.h"

namespace chaski {

void require_moc_shape(const char* op, const MocShape& shape) {
  const std::int64_t size = shape.intermediate_size;
  if (size < 1 || size > MocShape::kMaxChannels)
    throw std::invalid_argument(
        fmt::format("{}: {} channels, must be 1 to {}", op, size, MocShape::kMaxChannels));
  const bool of_eight = shape.pattern == MocPattern::two_of_eight;
  const std::int64_t most = of_eight ? MocShape::kept_of_eight(size) : size;
  const std::int64_t least = of_eight ? most : 1;
  if (shape.keep < least || shape.keep > most)
    throw std::invalid_argument(
        fmt::format("{}: {} of {} channels are to be kept, must be {} to {}", op, shape.keep, size,
                    least, most));
}

void require_moc_kept(const char* op, const MocShape& shape, const MocKept& kept,
                      std::int64_t rows) {
  require_matrix(op, "kept.gate", kept.gate, rows, shape.keep);
  require_matrix(op, "kept.up", kept.up, rows, shape.keep);
  if (kept.silu) require_matrix(op, "kept.silu", kept.silu, rows, shape.keep);
  if (kept.product) require_matrix(op, "kept.product", kept.product, rows, shape.keep);
  require_matrix(op, "kept.index", kept.index, rows, shape.index_bytes());
  require_dtype(op, "kept.index", kept.index, DType::u8);
}

MocProblem moc_problem_of(const MocShape& shape) {
  return {shape.intermediate_size,
          shape.keep,
          shape.pattern == MocPattern::two_of_eight,
          shape.score == MocScore::silu_magnitude,
          shape.index == MocIndex::bitmap,
          shape.index_bytes()};
}

MocRows moc_rows_of(const MocKept& kept) {
  return {kept.gate.f32(), kept.up.f32(), kept.silu.f32(), kept.product.f32(),
          kept.index.as<std::uint8_t>()};
}

namespace {

int threads_of(const Device& device, const MocShape& shape, std::int64_t rows) {
  return threads_for(device, rows * shape.intermediate_size);
}

// What the inner loops of so many threads work in; those of a GPU need none.
Tensor take_scratch(Workspace::Frame& frame, const Device& device, const MocShape& shape,
                    int threads) {
  if (device.backend() == Backend::cuda) return {};
  return frame.f32(
      {threads * CHASKI_CPU_KERNELS(moc_kernels).scratch_floats(moc_problem_of(shape))});
}

}  // namespace

const char* name_of(MocPattern pattern) {
  return pattern == MocPattern::topk ? "topk" : "2:8";
}

const char* name_of(MocScore score) {
  return score == MocScore::gate ? "gate" : "silu-magnitude";
}

const char* name_of(MocIndex index) {
  return index == MocIndex::uint16 ? "uint16" : "bitmap";
}

std::int64_t MocShape::kept_of_eight(std::int64_t intermediate_size) {
  return 2 * (intermediate_size / 8) + std::min<std::int64_t>(2, intermediate_size % 8);
}

std::int64_t MocShape::index_bytes() const {
  return index == MocIndex::uint16 ? 2 * keep : (intermediate_size + 7) / 8;
}

MocIndex MocShape::smaller_index(std::int64_t intermediate_size, std::int64_t keep) {
  return (intermediate_size + 7) / 8 < 2 * keep ? MocIndex::bitmap : MocIndex::uint16;
}

void moc_forward(const MocShape& shape, const Tensor& gate_up, const MocKept& kept,
                 const Tensor& activation) {
  constexpr const char* kOp = "moc_forward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, gate_up);
  require_moc_shape(kOp, shape);
  const std::int64_t rows = gate_up.shape().num_rows();
  require_matrix(kOp, "gate_up", gate_up, rows, 2 * shape.intermediate_size);
  require_matrix(kOp, "activation", activation, rows, shape.intermediate_size);
  require_distinct(kOp, "activation", activation, "gate_up", gate_up);
  require_moc_kept(kOp, shape, kept, rows);
  const int threads = threads_of(device, shape, rows);
  Workspace::Frame frame(device);
  const Tensor scratch = take_scratch(frame, device, shape, threads);
  if (device.is_counting()) {
    return count_op(device, kOp,
                    {gate_up, kept.gate, kept.up, kept.silu, kept.product, kept.index, activation});
  }
  CHASKI_CUDA_OP(device, moc_forward(shape, gate_up, kept, activation));
  CHASKI_CPU_KERNELS(moc_kernels)
      .forward(moc_problem_of(shape), gate_up.f32(), moc_rows_of(kept), activation.f32(),
               scratch.f32(), rows, threads);
}

void moc_backward(const MocShape& shape, const MocKept& kept, const Tensor& dactivation,
                  const Tensor& dgate_up, const Tensor& activation) {
  constexpr const char* kOp = "moc_backward";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, dactivation);
  require_moc_shape(kOp, shape);
  const std::int64_t rows = dactivation.shape().num_rows();
  require_matrix(kOp, "dactivation", dactivation, rows, shape.intermediate_size);
  require_matrix(kOp, "dgate_up", dgate_up, rows, 2 * shape.intermediate_size);
  require_distinct(kOp, "dgate_up", dgate_up, "dactivation", dactivation);
  if (activation) require_matrix(kOp, "activation", activation, rows, shape.intermediate_size);
  require_moc_kept(kOp, shape, kept, rows);
  const int threads = threads_of(device, shape, rows);
  Workspace::Frame frame(device);
  const Tensor scratch = take_scratch(frame, device, shape, threads);
  if (device.is_counting()) {
    return count_op(device, kOp,
                    {kept.gate, kept.up, kept.silu, kept.product, kept.index, dactivation, dgate_up,
                     activation});
  }
  CHASKI_CUDA_OP(device, moc_backward(shape, kept, dactivation, dgate_up, activation));
  CHASKI_CPU_KERNELS(moc_kernels)
      .backward(moc_problem_of(shape), moc_rows_of(kept), dactivation.f32(), dgate_up.f32(),
                activation.f32(), scratch.f32(), rows, threads);
}

void moc_count(const MocShape& shape, const MocKept& kept, const Tensor& counts,
               const Tensor& positive) {
  constexpr const char* kOp = "moc_count";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, kept.gate);
  require_moc_shape(kOp, shape);
  const std::int64_t rows = kept.gate.shape().num_rows();
  require_moc_kept(kOp, shape, kept, rows);
  require_elements(kOp, "counts", counts, shape.intermediate_size);
  require_elements(kOp, "positive", positive, 2);
  Workspace::Frame frame(device);
  const Tensor scratch = take_scratch(frame, device, shape, 1);
  if (device.is_counting()) return count_op(device, kOp, {kept.gate, kept.index, counts, counts});
  CHASKI_CUDA_OP(device, moc_count(shape, kept, counts, positive));
  CHASKI_CPU_KERNELS(moc_kernels)
      .count(moc_problem_of(shape), moc_rows_of(kept), counts.i32(), positive.i32(), scratch.f32(),
             rows);
}

}  // namespace chaski
