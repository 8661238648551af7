#include "kernels/moc/decode.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>
#include <vector>

#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/moc/decode_cpu.h"
#include "kernels/moc/decode_cuda.h"
#include "kernels/moc/shape.h"

namespace chaski {
namespace {

MocShape with_channels(MocShape shape) {
  shape.index = MocIndex::uint16;
  return shape;
}

void require_selection(const char* op, const MocShape& shape, const MocSelection& selection,
                       std::int64_t tokens) {
  require_moc_shape(op, shape);
  require_matrix(op, "selection.gate", selection.gate, tokens, shape.keep);
  require_matrix(op, "selection.channels", selection.channels, tokens, 2 * shape.keep);
  require_dtype(op, "selection.channels", selection.channels, DType::u8);
}

const std::uint16_t* channels_of(const MocSelection& selection) {
  return static_cast<const std::uint16_t*>(selection.channels.raw());
}

void select(const Device& device, const MocShape& shape, const Tensor& gates,
            const MocSelection& selection, float* scratch) {
  const MocRows rows{selection.gate.f32(), nullptr, nullptr, nullptr,
                     selection.channels.as<std::uint8_t>()};
  const std::int64_t tokens = gates.shape().num_rows();
  CHASKI_CPU_KERNELS(moc_kernels)
      .select(moc_problem_of(shape), gates.f32(), rows, scratch, tokens,
              threads_for(device, gates.num_elements()));
}

}  // namespace

bool moc_decode_pays(const MocShape& shape, std::int64_t tokens) {
  const std::int64_t size = shape.intermediate_size;
  // Six times a quarter, rounded up to whole groups of eight, still counts as six quarters.
  constexpr std::int64_t kGroup = 8;
  return tokens <= kMaxMocDecodeTokens && 2 * tokens * shape.keep < 3 * (size + kGroup) &&
         4 * shape.keep <= 3 * size;
}

void moc_decode(const MocShape& given, const Tensor& x, const Tensor& gates,
                const MocDecodeWeights& weights, const MocSelection& selection, const Tensor& out) {
  constexpr const char* kOp = "moc_decode";
  const ProfileScope scope(kOp);
  Device& device = device_of(kOp, x);
  const MocShape shape = with_channels(given);
  const std::int64_t tokens = x.shape().num_rows();
  const std::int64_t hidden = x.shape().back();
  const std::int64_t size = shape.intermediate_size;
  if (tokens < 1 || tokens > kMaxMocDecodeTokens)
    throw std::invalid_argument(
        fmt::format("{}: {} tokens, must be 1 to {}", kOp, tokens, kMaxMocDecodeTokens));
  require_selection(kOp, shape, selection, tokens);
  require_matrix(kOp, "gates", gates, tokens, size);
  require_matrix(kOp, "weights.up", weights.up, size, hidden);
  require_matrix(kOp, "weights.down_transposed", weights.down_transposed, size, hidden);
  require_matrix(kOp, "out", out, tokens, hidden);
  for (const Tensor* tensor :
       {&gates, &weights.up, &weights.down_transposed, &selection.gate, &out})
    require_dtype(kOp, "an operand", *tensor, x.dtype());
  require_distinct(kOp, "out", out, "x", x);
  require_distinct(kOp, "out", out, "gates", gates);
  CHASKI_CUDA_OP(device, moc_decode(shape, x, gates, weights, selection, out));
  const MocDecodeKernels& cpu = CHASKI_CPU_KERNELS(moc_decode_kernels);
  static_assert(kMaxMocDecodeTokens == MocDecodeProblem::kMaxTokens);
  const MocDecodeProblem problem{tokens, hidden, size, shape.keep,
                                 threads_for(device, tokens * shape.keep * hidden)};
  const std::int64_t of_selection =
      CHASKI_CPU_KERNELS(moc_kernels).scratch_floats(moc_problem_of(shape)) * device.num_threads();
  Workspace::Frame frame(device);
  const Tensor scratch = frame.f32({std::max(of_selection, cpu.scratch_words(problem))});
  select(device, shape, gates, selection, scratch.f32());
  cpu.run(problem, x.f32(), weights.up.f32(), weights.down_transposed.f32(),
          {selection.gate.f32(), channels_of(selection)}, out.f32(), scratch.raw());
}

std::int64_t num_selected_channels(const MocShape& shape, const MocSelection& selection) {
  constexpr const char* kOp = "num_selected_channels";
  const std::int64_t tokens = selection.gate.shape().num_rows();
  require_selection(kOp, shape, selection, tokens);
  std::vector<std::uint16_t> channels(static_cast<std::size_t>(tokens * shape.keep));
  copy_to_host(selection.channels, channels.data());
  std::sort(channels.begin(), channels.end());
  return std::unique(channels.begin(), channels.end()) - channels.begin();
}

void transpose(const Tensor& from, const Tensor& to) {
  constexpr const char* kOp = "transpose";
  const ProfileScope scope(kOp);
  const Device& device = device_of(kOp, from);
  const std::int64_t rows = from.shape().num_rows();
  const std::int64_t cols = from.shape().back();
  require_matrix(kOp, "to", to, cols, rows);
  require_dtype(kOp, "to", to, from.dtype());
  require_distinct(kOp, "to", to, "from", from);
  if (from.dtype() != DType::f32) require_dtype(kOp, "from", from, DType::bf16);
  CHASKI_CUDA_OP(device, transpose(from, to));
  const MocDecodeKernels& cpu = CHASKI_CPU_KERNELS(moc_decode_kernels);
  const int threads = threads_for(device, from.num_elements());
  if (from.dtype() == DType::f32) {
    cpu.transpose_32(static_cast<const std::uint32_t*>(from.raw()),
                     static_cast<std::uint32_t*>(to.raw()), rows, cols, threads);
  } else {
    cpu.transpose_16(from.as<std::uint16_t>(), to.as<std::uint16_t>(), rows, cols, threads);
  }
}

}  // namespace chaski
