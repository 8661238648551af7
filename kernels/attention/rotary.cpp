#include "kernels/attention/rotary.h"

#include <cmath>
#include <fmt/format.h>
#include <stdexcept>
#include <vector>

#include "kernels/attention/rotary_cpu.h"
#include "kernels/attention/rotary_cuda.h"
#include "kernels/device/dispatch.h"
#include "kernels/device/profile.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

void require_even(const char* op, std::int64_t head_dim) {
  if (head_dim <= 0 || head_dim % 2 != 0)
    throw std::invalid_argument(
        fmt::format("{}: head_dim is {}, expected an even number", op, head_dim));
}

// What the host can see of them.
void require_positions_in_table(const char* op, const AttentionShape& shape,
                                const Tensor& positions, std::int64_t first_position,
                                std::int64_t max_positions) {
  std::int64_t smallest = first_position;
  std::int64_t largest = first_position + shape.sequence_length - 1;
  if (positions) {
    require_dtype(op, "positions", positions, DType::i32);
    require_elements(op, "positions", positions, shape.num_tokens());
    if (positions.device().backend() != Backend::cpu || positions.device().is_counting()) return;
    smallest = largest = 0;
    for (std::int64_t t = 0; t < shape.num_tokens(); ++t) {
      const std::int64_t position = positions.i32()[t];
      if (position < smallest) smallest = position;
      if (position > largest) largest = position;
    }
  }
  if (smallest < 0 || largest >= max_positions)
    throw std::invalid_argument(fmt::format("{}: the position {} is outside the table of {}", op,
                                            smallest < 0 ? smallest : largest, max_positions));
}

void rotate(const char* op, const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
            std::int64_t first_position, const Tensor& table, float direction) {
  const ProfileScope scope(op);
  Device& device = device_of(op, qkv);
  require_even(op, shape.head_dim);
  require_matrix(op, "qkv", qkv, shape.num_tokens(), shape.qkv_size());
  require_matrix(op, "table", table, table.shape().num_rows(), shape.head_dim);
  if (shape.num_tokens() == 0) return;
  require_positions_in_table(op, shape, positions, first_position, table.shape().num_rows());
  if (device.is_counting()) {
    // Of a token, its queries and keys.
    const Tensor rotated =
        qkv.view({shape.num_tokens() * shape.qkv_size()})
            .rows(0, shape.num_tokens() * (shape.query_size() + shape.kv_size()));
    return count_op(device, op, {rotated, rotated, positions});
  }
  CHASKI_CUDA_OP(device, rotary(op, shape, qkv, positions, first_position, table, direction));
  CHASKI_CPU_KERNELS(rotary_kernels)
      .rotate(qkv.f32(), shape.num_tokens(), shape.qkv_size(), shape.num_heads + shape.num_kv_heads,
              shape.head_dim, positions ? positions.i32() : nullptr, first_position,
              shape.sequence_length, table.f32(), direction,
              threads_for(device, shape.num_tokens() * (shape.query_size() + shape.kv_size())));
}

}  // namespace

void rotary_table(double theta, const Tensor& table) {
  constexpr const char* kOp = "rotary_table";
  Device& device = device_of(kOp, table);
  const std::int64_t head_dim = table.shape().back();
  require_even(kOp, head_dim);
  require_dtype(kOp, "table", table, DType::f32);
  if (device.is_counting()) return count_op(device, kOp, {table});
  std::vector<float> values(static_cast<std::size_t>(table.num_elements()));
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (std::int64_t position = 0; position < table.shape().num_rows(); ++position) {
      const double angle = static_cast<double>(position) * frequency;
      float* row = values.data() + position * head_dim;
      row[i] = static_cast<float>(std::cos(angle));
      row[i + half] = static_cast<float>(std::sin(angle));
    }
  }
  copy_from_host(values.data(), table);
}

void rotary_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
                    std::int64_t first_position, const Tensor& table) {
  rotate("rotary_forward", shape, qkv, positions, first_position, table, 1.0f);
}

void rotary_backward(const AttentionShape& shape, const Tensor& dqkv, const Tensor& positions,
                     const Tensor& table) {
  rotate("rotary_backward", shape, dqkv, positions, 0, table, -1.0f);
}

}  // namespace chaski
