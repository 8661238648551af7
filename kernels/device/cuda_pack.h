#pragma once

// Neighbouring elements that a thread of a kernel moves at once, and kernels that go through
// tensors element by element.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/device/cuda_device.h"
#include "kernels/device/cuda_launch.h"

namespace chaski::cuda {

// kWidth elements as floats in registers; in memory they are T, aligned as are_aligned says.
template <typename T, int kWidth>
struct Pack {
  float at[kWidth];

  __device__ static Pack load(const T* from) {
    const Stored stored = *reinterpret_cast<const Stored*>(from);
    Pack pack;
    for (int i = 0; i < kWidth; ++i) pack.at[i] = to_float(stored.at[i]);
    return pack;
  }
  // By __stwb, an ordinary store: nvcc takes the assignment of a struct apart and puts the parts
  // together again only sometimes.
  __device__ void store(T* to) const {
    Stored stored;
    for (int i = 0; i < kWidth; ++i) stored.at[i] = from_float<T>(at[i]);
    constexpr int kWords = sizeof(Stored) / sizeof(Word);
    Word words[kWords];
    memcpy(words, &stored, sizeof(Stored));
    for (int i = 0; i < kWords; ++i) __stwb(reinterpret_cast<Word*>(to) + i, words[i]);
  }
  // What is left of the numbers once they are T.
  __device__ void round() {
    for (int i = 0; i < kWidth; ++i) at[i] = to_float(from_float<T>(at[i]));
  }

  static constexpr std::size_t kAlignment = std::min<std::size_t>(16, kWidth * sizeof(T));
  struct alignas(kAlignment) Stored {
    T at[kWidth];
  };
  using Word = std::conditional_t<
      kAlignment == 16, uint4,
      std::conditional_t<kAlignment == 8, uint2,
                         std::conditional_t<kAlignment == 4, unsigned, unsigned short>>>;
};

// Whether packs of kWidth may begin at all of these. Null pointers do not count.
template <int kWidth, typename... T>
bool are_aligned(const T*... elements) {
  return ((reinterpret_cast<std::uintptr_t>(elements) % Pack<T, kWidth>::kAlignment == 0) && ...);
}

inline constexpr int kMapThreads = 256;

template <int kWidth, typename Op>
__global__ void __launch_bounds__(kMapThreads) map_kernel(std::int64_t count, Op op) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kMapThreads + threadIdx.x) * kWidth;
  if (index + kWidth <= count) {
    op.template apply<kWidth>(index);
  } else {
    for (std::int64_t i = index; i < count; ++i) op.template apply<1>(i);
  }
}

// op.apply<w>(i) works on elements i … i + w - 1, those of a thread of its own, for all of `count`:
// w is Op::kWidth where op.aligned() says that it can be, and 1 for what is left.
template <typename Op>
void map(Device& device, const char* name, std::int64_t count, const Op& op) {
  constexpr int kWidth = Op::kWidth;
  const bool wide = op.aligned();
  const std::int64_t each = static_cast<std::int64_t>(kMapThreads) * (wide ? kWidth : 1);
  launch(device, name, {grid_of(divide_up(count, each)), kMapThreads},
         wide ? map_kernel<kWidth, Op> : map_kernel<1, Op>, count, op);
}

}  // namespace chaski::cuda
