#include "kernels/cuda_device.h"
#include "kernels/cuda_launch.h"
#include "kernels/swiglu_cuda.h"

namespace chaski::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// A thread takes `kWidth` neighbouring columns of one row: kVectorWidth<T> where rows are aligned
// for that, else 1.
template <typename T, int kWidth>
struct Pack {
  float at[kWidth];

  __device__ explicit Pack(const T* from) {
    if constexpr (kWidth == 1) {
      at[0] = to_float(*from);
    } else {
      const Vector<T> packed = *reinterpret_cast<const Vector<T>*>(from);
      for (int i = 0; i < kWidth; ++i) at[i] = to_float(packed.at[i]);
    }
  }
  __device__ void store(T* to) const {
    if constexpr (kWidth == 1) {
      *to = from_float<T>(at[0]);
    } else {
      Vector<T> packed;
      for (int i = 0; i < kWidth; ++i) packed.at[i] = from_float<T>(at[i]);
      *reinterpret_cast<Vector<T>*>(to) = packed;
    }
  }
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* gate_up, T* activation, std::int64_t rows, std::int64_t size) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (index >= rows * size) return;
  const std::int64_t row = index / size;
  const std::int64_t column = index - row * size;
  const T* gates = gate_up + row * 2 * size + column;
  Pack<T, kWidth> gate(gates);
  const Pack<T, kWidth> up(gates + size);
  for (int i = 0; i < kWidth; ++i) gate.at[i] *= sigmoid(gate.at[i]) * up.at[i];
  gate.store(activation + index);
}

// Every element is read before it is written by the same thread: results may lie over operands.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* gate_up, const T* dactivation, T* dgate_up, T* activation,
                    std::int64_t rows, std::int64_t size) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (index >= rows * size) return;
  const std::int64_t row = index / size;
  const std::int64_t offset = row * 2 * size + index - row * size;
  Pack<T, kWidth> gate(gate_up + offset);
  Pack<T, kWidth> up(gate_up + offset + size);
  Pack<T, kWidth> product(dactivation + index);
  for (int i = 0; i < kWidth; ++i) {
    const float dproduct = product.at[i];
    const float share = sigmoid(gate.at[i]);
    const float silu = gate.at[i] * share;
    product.at[i] = silu * up.at[i];
    gate.at[i] = dproduct * up.at[i] * share * (1.0f + gate.at[i] * (1.0f - share));
    up.at[i] = dproduct * silu;
  }
  gate.store(dgate_up + offset);
  up.store(dgate_up + offset + size);
  if (activation != nullptr) product.store(activation + index);
}

LaunchShape shape_for(std::int64_t elements, int width) {
  return {grid_of(divide_up(elements, static_cast<std::int64_t>(kThreads) * width)), kThreads};
}

}  // namespace

void swiglu_forward(const Tensor& gate_up, const Tensor& activation) {
  const std::int64_t rows = gate_up.shape().num_rows();
  const std::int64_t size = activation.shape().back();
  with_element_type("swiglu_forward", gate_up, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    const bool wide = size % kWidth == 0;
    launch(gate_up.device(), "swiglu_forward", shape_for(rows * size, wide ? kWidth : 1),
           wide ? forward_kernel<T, kWidth> : forward_kernel<T, 1>, elements<T>(gate_up),
           elements<T>(activation), rows, size);
  });
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dactivation, const Tensor& dgate_up,
                     const Tensor& activation) {
  const std::int64_t rows = gate_up.shape().num_rows();
  const std::int64_t size = gate_up.shape().back() / 2;
  with_element_type("swiglu_backward", gate_up, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    const bool wide = size % kWidth == 0;
    launch(gate_up.device(), "swiglu_backward", shape_for(rows * size, wide ? kWidth : 1),
           wide ? backward_kernel<T, kWidth> : backward_kernel<T, 1>, elements<T>(gate_up),
           elements<T>(dactivation), elements<T>(dgate_up), elements<T>(activation), rows, size);
  });
}

}  // namespace chaski::cuda
