#pragma once

// What device code in .cu files shares: element types, shared memory, reductions.

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/device/tensor.h"

#ifdef __CUDACC__
#define CHASKI_UNROLL _Pragma("unroll")
#else
#define CHASKI_UNROLL
#endif

namespace chaski::cuda {

using bf16 = __nv_bfloat16;

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
// Rounded to nearest, ties to even.
template <typename T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// Consecutive elements that one thread moves at once; as many as fill 16 bytes.
template <typename T>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <typename T>
struct alignas(16) Vector {
  T at[kVectorWidth<T>];
};

// The dynamic shared memory of the running block, aligned to 16 bytes.
#ifdef __CUDACC__
template <typename T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char chaski_dynamic_shared[];
  return reinterpret_cast<T*>(chaski_dynamic_shared);
}
#else
template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(chaski_cuda_model_dynamic_shared());
}
#endif

// Over the 32 lanes of a warp, in every lane.
__device__ inline float warp_sum(float x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kFullWarp, x, offset);
  }
  return x;
}
__device__ inline double warp_sum(double x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kFullWarp, x, offset);
  }
  return x;
}
__device__ inline float warp_max(float x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  }
  return x;
}

// Over a block of kThreads threads (a multiple of 32, at most 1024), in every thread. A barrier
// stands before it returns and one where it begins, so that calls may follow each other.
template <int kThreads, typename T, typename Combine>
static __device__ T block_reduce(T x, T neutral, Combine combine) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && kWarps <= kWarpSize);
  __shared__ T partial[kWarpSize];
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(kFullWarp, x, offset));
  }
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  __syncthreads();
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  x = lane < kWarps ? partial[lane] : neutral;
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(kFullWarp, x, offset));
  }
  return x;
}
template <int kThreads, typename T>
__device__ T block_sum(T x) {
  return block_reduce<kThreads>(x, T(0), [](T a, T b) { return a + b; });
}
template <int kThreads>
__device__ float block_max(float x) {
  return block_reduce<kThreads>(x, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
}

// The elements of a tensor of floats or bf16 for device code.
template <typename T>
T* elements(const Tensor& tensor) {
  if (tensor.empty()) return nullptr;
  if constexpr (std::is_same_v<T, bf16>) {
    return reinterpret_cast<bf16*>(tensor.as<std::uint16_t>());
  } else {
    return tensor.as<T>();
  }
}

// Calls `work` with a null pointer of the element type that `tensor` has, float or bf16.
template <typename Work>
void with_element_type(const char* op, const Tensor& tensor, const Work& work) {
  switch (tensor.dtype()) {
    case DType::f32:
      return work(static_cast<float*>(nullptr));
    case DType::bf16:
      return work(static_cast<bf16*>(nullptr));
    default:
      throw std::invalid_argument(std::string(op) + ": an operand is " + name_of(tensor.dtype()) +
                                  ", expected f32 or bf16");
  }
}

}  // namespace chaski::cuda
