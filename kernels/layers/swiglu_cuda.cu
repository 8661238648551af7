#include "kernels/device/cuda_pack.h"
#include "kernels/layers/swiglu_cuda.h"

namespace chaski::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// A thread takes `kWidth` neighbouring columns of one row: kVectorWidth<T> where rows are aligned
// for that, else 1.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* gate_up, T* activation, T* silu, std::int64_t rows, std::int64_t size) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (index >= rows * size) return;
  const std::int64_t row = index / size;
  const std::int64_t column = index - row * size;
  const T* gates = gate_up + row * 2 * size + column;
  auto gate = Pack<T, kWidth>::load(gates);
  const auto up = Pack<T, kWidth>::load(gates + size);
  // In the order of the backward kernel, which computes the product again.
  for (int i = 0; i < kWidth; ++i) gate.at[i] = gate.at[i] * sigmoid(gate.at[i]);
  if (silu != nullptr) gate.store(silu + index);
  for (int i = 0; i < kWidth; ++i) gate.at[i] = gate.at[i] * up.at[i];
  gate.store(activation + index);
}

// Every element is read before it is written by the same thread: results may lie over operands.
// silu_kept may be null.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* gate_up, const T* dactivation, T* dgate_up, T* activation,
                    const T* silu_kept, std::int64_t rows, std::int64_t size) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (index >= rows * size) return;
  const std::int64_t row = index / size;
  const std::int64_t offset = row * 2 * size + index - row * size;
  auto gate = Pack<T, kWidth>::load(gate_up + offset);
  auto up = Pack<T, kWidth>::load(gate_up + offset + size);
  auto product = Pack<T, kWidth>::load(dactivation + index);
  Pack<T, kWidth> kept{};
  if (silu_kept != nullptr) kept = Pack<T, kWidth>::load(silu_kept + index);
  for (int i = 0; i < kWidth; ++i) {
    const float dproduct = product.at[i];
    const float share = sigmoid(gate.at[i]);
    const float silu = gate.at[i] * share;
    // With the rounding that it has where it is stored.
    const float stored = silu_kept != nullptr ? kept.at[i] : to_float(from_float<T>(silu));
    product.at[i] = silu * up.at[i];
    gate.at[i] = dproduct * up.at[i] * share * (1.0f + gate.at[i] * (1.0f - share));
    up.at[i] = dproduct * stored;
  }
  gate.store(dgate_up + offset);
  up.store(dgate_up + offset + size);
  if (activation != nullptr) product.store(activation + index);
}

LaunchShape shape_for(std::int64_t elements, int width) {
  return {grid_of(divide_up(elements, static_cast<std::int64_t>(kThreads) * width)), kThreads};
}

}  // namespace

void swiglu_forward(const Tensor& gate_up, const Tensor& activation, const Tensor& silu) {
  const std::int64_t rows = gate_up.shape().num_rows();
  const std::int64_t size = activation.shape().back();
  with_element_type("swiglu_forward", gate_up, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    const T* x = elements<T>(gate_up);
    T* y = elements<T>(activation);
    T* s = elements<T>(silu);
    const bool wide = size % kWidth == 0 && are_aligned<kWidth>(x, y, s);
    launch(gate_up.device(), "swiglu_forward", shape_for(rows * size, wide ? kWidth : 1),
           wide ? forward_kernel<T, kWidth> : forward_kernel<T, 1>, x, y, s, rows, size);
  });
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dactivation, const Tensor& dgate_up,
                     const Tensor& activation, const Tensor& silu) {
  const std::int64_t rows = gate_up.shape().num_rows();
  const std::int64_t size = gate_up.shape().back() / 2;
  with_element_type("swiglu_backward", gate_up, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    const T* x = elements<T>(gate_up);
    const T* dy = elements<T>(dactivation);
    T* dx = elements<T>(dgate_up);
    T* y = elements<T>(activation);
    const T* s = elements<T>(silu);
    const bool wide = size % kWidth == 0 && are_aligned<kWidth>(x, dy, dx, y, s);
    launch(gate_up.device(), "swiglu_backward", shape_for(rows * size, wide ? kWidth : 1),
           wide ? backward_kernel<T, kWidth> : backward_kernel<T, 1>, x, dy, dx, y, s, rows, size);
  });
}

}  // namespace chaski::cuda
