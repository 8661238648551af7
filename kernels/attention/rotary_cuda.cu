#include "kernels/attention/rotary_cuda.h"
#include "kernels/device/cuda_pack.h"

namespace chaski::cuda {
namespace {

constexpr int kThreads = 256;

struct Rotation {
  std::int64_t stride;  // elements of a row of qkv
  int num_heads;        // query and key heads
  int half;             // of a head
  std::int64_t first_position;
  std::int64_t sequence_length;
  std::int64_t max_positions;
  float direction;
};

// A block for each token. A thread turns kWidth neighbouring pairs of a head at a time.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(T* qkv, const std::int32_t* positions, const float* table, Rotation rotation) {
  const std::int64_t token = blockIdx.x;
  const std::int64_t position = positions != nullptr
                                    ? positions[token]
                                    : rotation.first_position + token % rotation.sequence_length;
  const bool known = position >= 0 && position < rotation.max_positions;
  const int half = rotation.half;
  const int packs = half / kWidth;
  const float* cosines = known ? table + position * 2 * half : nullptr;
  T* row = qkv + token * rotation.stride;
  for (int item = threadIdx.x; item < rotation.num_heads * packs; item += kThreads) {
    const int head = item / packs;
    const int column = (item - head * packs) * kWidth;
    T* to = row + static_cast<std::int64_t>(head) * 2 * half + column;
    auto low = Pack<T, kWidth>::load(to);
    auto high = Pack<T, kWidth>::load(to + half);
    Pack<float, kWidth> cosine;
    Pack<float, kWidth> sine;
    for (int k = 0; k < kWidth; ++k) cosine.at[k] = sine.at[k] = NAN;
    if (known) {
      cosine = Pack<float, kWidth>::load(cosines + column);
      sine = Pack<float, kWidth>::load(cosines + half + column);
    }
    for (int k = 0; k < kWidth; ++k) {
      const float c = cosine.at[k];
      const float s = rotation.direction * sine.at[k];
      const float x = low.at[k];
      const float y = high.at[k];
      low.at[k] = x * c - y * s;
      high.at[k] = y * c + x * s;
    }
    low.store(to);
    high.store(to + half);
  }
}

}  // namespace

void rotary(const char* op, const AttentionShape& shape, const Tensor& qkv, const Tensor& positions,
            std::int64_t first_position, const Tensor& table, float direction) {
  const Rotation rotation = {
      .stride = shape.qkv_size(),
      .num_heads = static_cast<int>(shape.num_heads + shape.num_kv_heads),
      .half = static_cast<int>(shape.head_dim / 2),
      .first_position = first_position,
      .sequence_length = shape.sequence_length,
      .max_positions = table.shape().num_rows(),
      .direction = direction,
  };
  with_element_type(op, qkv, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    T* rows = elements<T>(qkv);
    const float* angles = table.f32();
    const bool wide = rotation.half % kWidth == 0 && rotation.stride % kWidth == 0 &&
                      are_aligned<kWidth>(rows) && are_aligned<kWidth>(angles);
    launch(qkv.device(), op, {grid_of(shape.num_tokens()), kThreads},
           wide ? rotate_kernel<T, kWidth> : rotate_kernel<T, 1>, rows,
           positions ? positions.i32() : nullptr, angles, rotation);
  });
}

}  // namespace chaski::cuda
