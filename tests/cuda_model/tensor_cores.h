#pragma once

// Forced in behind device.h: the instructions of kernels/attention/cuda_tensor_cores.h as the PTX
// ISA describes their fragments (ldmatrix; mma.m16n8k16 with floating point type .bf16). So the
// fragments' indices in kernels are tested without a GPU.

#include <cstdint>
#include <cstring>

#include "kernels/device/bf16.h"
#include "kernels/device/cuda_device.h"

#define CHASKI_TENSOR_CORES

namespace chaski::cuda {

inline std::uint16_t bits_of(const bf16& element) {
  std::uint16_t bits;
  std::memcpy(&bits, &element, sizeof(bits));
  return bits;
}

// What a lane shows the others of its warp, until it comes to the second exchange after this one:
// by then all have come to the next one, and so are done with this.
template <typename T>
class WarpExchange {
 public:
  explicit WarpExchange(const T& own) : shown_(shown[turn[threadIdx.x]++ % 2]) {
    shown_[threadIdx.x] = own;
    __syncwarp();
  }
  const T& of(int lane) const {
    return shown_[threadIdx.x / kWarpSize * kWarpSize + static_cast<unsigned>(lane)];
  }

 private:
  // Of a block's threads; blocks run one after the other.
  static inline T shown[2][1024];
  static inline unsigned turn[1024];
  T* shown_;
};

struct SquareRow {
  const bf16* address;
};
struct Fragments {
  float a[4][2];
  float b[2][2];
};

inline void load_squares(unsigned (&squares)[4], const bf16* row, bool transposed = false) {
  const int lane = cuda_model::lane();
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    cuda_model::fail_in_kernel("ldmatrix: a row's address is no multiple of 16 bytes");
  const WarpExchange<SquareRow> rows({row});
  for (int square = 0; square < 4; ++square) {
    squares[square] = 0;
    for (int half = 0; half < 2; ++half) {
      const int across = lane / 4;
      const int along = lane % 4 * 2 + half;
      const bf16* from = rows.of(square * 8 + (transposed ? along : across)).address;
      squares[square] |= static_cast<unsigned>(bits_of(from[transposed ? across : along]))
                         << (16 * half);
    }
  }
  __syncwarp();  // the instruction ends when all have read
}
inline void load_transposed_squares(unsigned (&squares)[4], const bf16* row) {
  load_squares(squares, row, true);
}

inline float half_of(unsigned packed, int half) {
  return float_from_bf16(static_cast<std::uint16_t>(packed >> (16 * half)));
}

inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b_upper,
                         unsigned b_lower) {
  Fragments own;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) own.a[i][half] = half_of(a[i], half);
    own.b[0][half] = half_of(b_upper, half);
    own.b[1][half] = half_of(b_lower, half);
  }
  const WarpExchange<Fragments> lanes(own);
  const int lane = cuda_model::lane();
  for (int pair = 0; pair < 4; ++pair) {
    const Fragments& row = lanes.of(lane / 4 * 4 + pair);
    for (int i = 0; i < 4; ++i) {
      const Fragments& column = lanes.of((lane % 4 * 2 + i % 2) * 4 + pair);
      for (int k = 0; k < 4; ++k)
        sum[i] += row.a[k / 2 * 2 + i / 2][k % 2] * column.b[k / 2][k % 2];
    }
  }
}

}  // namespace chaski::cuda
