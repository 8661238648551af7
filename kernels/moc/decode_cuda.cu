#include <algorithm>

#include "kernels/device/cuda_device.h"
#include "kernels/device/cuda_launch.h"
#include "kernels/device/cuda_pack.h"
#include "kernels/moc/decode_cuda.h"
#include "kernels/moc/moc_cuda.h"

namespace chaski::cuda {
namespace {

// A block looks through a range of neighbouring channels and reads the rows of those that any token
// selected. Whole ranges: nothing needs to be known on the host, and no block waits for another.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kUpChannels = 32;
constexpr int kDownChannels = 128;

struct Selected {
  int tokens;
  int hidden;
  int size;
  int keep;
  const unsigned short* places;  // [tokens, size]: in the token's list of channels, or kMocNoPlace

  __device__ unsigned place(int token, int channel) const {
    return places[static_cast<std::int64_t>(token) * size + channel];
  }
};

// The selected channels of a range, in ascending order, and a bit for each token that selected it.
template <int kChannels>
struct ChannelList {
  int count;
  int channels[kChannels];
  unsigned tokens[kChannels];
};

// By the first warp; a barrier follows.
template <int kChannels>
__device__ void list_channels(const Selected& s, int begin, ChannelList<kChannels>& list) {
  if (threadIdx.x < kWarpSize) {
    int count = 0;
    for (int i = threadIdx.x; i < kChannels; i += kWarpSize) {
      const int channel = begin + i;
      unsigned tokens = 0;
      for (int token = 0; token < s.tokens && channel < s.size; ++token)
        tokens |= (s.place(token, channel) != kMocNoPlace ? 1u : 0u) << token;
      const unsigned present = __ballot_sync(kFullWarp, tokens != 0);
      if (tokens != 0) {
        const int at = count + __popc(present & ((1u << threadIdx.x) - 1));
        list.channels[at] = channel;
        list.tokens[at] = tokens;
      }
      count += __popc(present);
    }
    if (threadIdx.x == 0) list.count = count;
  }
  __syncthreads();
}

// Aiming for more than four blocks on a multiprocessor of these, the compiler spills registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define CHASKI_UP_BOUNDS __launch_bounds__(kThreads, 4)
#else
#define CHASKI_UP_BOUNDS __launch_bounds__(kThreads)
#endif

// products [tokens, keep] = SiLU(gate) · (up · x): a warp for each row of up.
template <typename T, int kTokens, int kWidth>
__global__ void CHASKI_UP_BOUNDS up_kernel(Selected s, const T* x, const T* up, const T* gates,
                                           float* products) {
  __shared__ ChannelList<kUpChannels> list;
  list_channels(s, static_cast<int>(blockIdx.x) * kUpChannels, list);
  const int lane = threadIdx.x % kWarpSize;
  for (int i = static_cast<int>(threadIdx.x) / kWarpSize; i < list.count; i += kWarps) {
    const int channel = list.channels[i];
    const unsigned tokens = list.tokens[i];
    const T* row = up + static_cast<std::int64_t>(channel) * s.hidden;
    float sums[kTokens] = {};
    for (int column = lane * kWidth; column < s.hidden; column += kWarpSize * kWidth) {
      const auto w = Pack<T, kWidth>::load(row + column);
      CHASKI_UNROLL
      for (int token = 0; token < kTokens; ++token) {
        if ((tokens >> token & 1) == 0) continue;
        const auto v =
            Pack<T, kWidth>::load(x + static_cast<std::int64_t>(token) * s.hidden + column);
        CHASKI_UNROLL
        for (int j = 0; j < kWidth; ++j) sums[token] = fmaf(v.at[j], w.at[j], sums[token]);
      }
    }
    CHASKI_UNROLL
    for (int token = 0; token < kTokens; ++token) {
      if ((tokens >> token & 1) == 0) continue;
      const float sum = warp_sum(sums[token]);
      if (lane != 0) continue;
      const std::int64_t at = static_cast<std::int64_t>(token) * s.keep + s.place(token, channel);
      const float gate = to_float(gates[at]);
      products[at] = gate / (1.0f + expf(-gate)) * sum;
    }
  }
}

// partials [parts, tokens, hidden]: of the channels of one part. A warp takes every kWarps-th row,
// each lane kWidth columns; the warps' sums are added in their order.
template <typename T, int kTokens, int kWidth>
__global__ void __launch_bounds__(kThreads)
    down_kernel(Selected s, const T* down, const float* products, float* partials) {
  constexpr int kColumns = kWarpSize * kWidth;
  __shared__ ChannelList<kDownChannels> list;
  __shared__ float others[kWarps][kColumns];
  list_channels(s, static_cast<int>(blockIdx.x) * kDownChannels, list);
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int column = static_cast<int>(blockIdx.y) * kColumns + lane * kWidth;
  float sums[kTokens][kWidth] = {};
  if (column < s.hidden) {
    for (int i = warp; i < list.count; i += kWarps) {
      const int channel = list.channels[i];
      const unsigned tokens = list.tokens[i];
      const auto w =
          Pack<T, kWidth>::load(down + static_cast<std::int64_t>(channel) * s.hidden + column);
      CHASKI_UNROLL
      for (int token = 0; token < kTokens; ++token) {
        if ((tokens >> token & 1) == 0) continue;
        const float factor =
            products[static_cast<std::int64_t>(token) * s.keep + s.place(token, channel)];
        CHASKI_UNROLL
        for (int j = 0; j < kWidth; ++j) sums[token][j] = fmaf(factor, w.at[j], sums[token][j]);
      }
    }
  }
  CHASKI_UNROLL
  for (int token = 0; token < kTokens; ++token) {
    if (token >= s.tokens) break;
    __syncthreads();  // the last token's sums have been read
    CHASKI_UNROLL
    for (int j = 0; j < kWidth; ++j) others[warp][lane * kWidth + j] = sums[token][j];
    __syncthreads();
    float* partial = partials +
                     (static_cast<std::int64_t>(blockIdx.x) * s.tokens + token) * s.hidden +
                     static_cast<std::int64_t>(blockIdx.y) * kColumns;
    for (int i = threadIdx.x; i < kColumns; i += kThreads) {
      if (static_cast<int>(blockIdx.y) * kColumns + i >= s.hidden) break;
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += others[w][i];
      partial[i] = sum;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(std::int64_t count, int parts, const float* partials, T* out) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count) return;
  float sum = 0.0f;
  for (int part = 0; part < parts; ++part) sum += partials[part * count + index];
  out[index] = from_float<T>(sum);
}

template <typename T>
struct DecodeOperands {
  const T* x;
  const T* gates;  // kept
  const T* up;
  const T* down;
  float* products;
  float* partials;
  T* out;
};

// kTokens: at least as many as there are.
template <typename T, int kTokens, int kWidth>
void run(Device& device, const Selected& s, const DecodeOperands<T>& operands) {
  const auto ranges = [&](int channels) {
    return static_cast<unsigned>(divide_up(s.size, channels));
  };
  launch(device, "moc_decode", {dim3(ranges(kUpChannels)), kThreads}, up_kernel<T, kTokens, kWidth>,
         s, operands.x, operands.up, operands.gates, operands.products);
  const unsigned parts = ranges(kDownChannels);
  const auto strips = static_cast<unsigned>(divide_up(s.hidden, kWarpSize * kWidth));
  launch(device, "moc_decode", {dim3(parts, strips), kThreads}, down_kernel<T, kTokens, kWidth>, s,
         operands.down, operands.products, operands.partials);
  const std::int64_t count = static_cast<std::int64_t>(s.tokens) * s.hidden;
  launch(device, "moc_decode", {grid_of(divide_up(count, kThreads)), kThreads}, combine_kernel<T>,
         count, static_cast<int>(parts), operands.partials, operands.out);
}

template <typename T, int kTokens>
void run_wide(Device& device, const Selected& s, const DecodeOperands<T>& operands) {
  // Sums of a thread, at most 64 of them.
  constexpr int kWidth = std::min(kVectorWidth<T>, 64 / kTokens);
  const bool wide =
      s.hidden % kWidth == 0 && are_aligned<kWidth>(operands.x, operands.up, operands.down);
  wide ? run<T, kTokens, kWidth>(device, s, operands) : run<T, kTokens, 1>(device, s, operands);
}

constexpr int kTile = 32;
constexpr int kTileRows = kThreads / kTile;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(std::int64_t rows, std::int64_t cols, const T* from, T* to) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int across = threadIdx.x % kTile;
  const int down = threadIdx.x / kTile;
  // The grid's second dimension may be too short for all rows.
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * kTile; row < rows;
       row += static_cast<std::int64_t>(gridDim.y) * kTile) {
    __syncthreads();  // the last tile has been read
    for (int i = down; i < kTile && row + i < rows; i += kTileRows) {
      if (col + across < cols) tile[i][across] = from[(row + i) * cols + col + across];
    }
    __syncthreads();
    for (int i = down; i < kTile && col + i < cols; i += kTileRows) {
      if (row + across < rows) to[(col + i) * rows + row + across] = tile[across][i];
    }
  }
}

}  // namespace

void moc_decode(const MocShape& shape, const Tensor& x, const Tensor& gates,
                const MocDecodeWeights& weights, const MocSelection& selection, const Tensor& out) {
  Device& device = x.device();
  const std::int64_t tokens = x.shape().num_rows();
  const std::int64_t hidden = x.shape().back();
  const std::int64_t size = shape.intermediate_size;
  Workspace::Frame frame(device);
  const Tensor places = frame.tensor(DType::u8, {tokens, 2 * size});
  const Tensor products = frame.f32({tokens, shape.keep});
  const Tensor partials = frame.f32({divide_up(size, kDownChannels), tokens, hidden});
  moc_select(shape, gates, selection.gate, selection.channels, places);
  const Selected s{static_cast<int>(tokens), static_cast<int>(hidden), static_cast<int>(size),
                   static_cast<int>(shape.keep), static_cast<unsigned short*>(places.raw())};
  with_element_type("moc_decode", x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const DecodeOperands<T> operands{elements<T>(x),          elements<T>(selection.gate),
                                     elements<T>(weights.up), elements<T>(weights.down_transposed),
                                     products.f32(),          partials.f32(),
                                     elements<T>(out)};
    static_assert(kMaxMocDecodeTokens == 16);
    if (tokens == 1) return run_wide<T, 1>(device, s, operands);
    if (tokens <= 4) return run_wide<T, 4>(device, s, operands);
    run_wide<T, 16>(device, s, operands);
  });
}

void transpose(const Tensor& from, const Tensor& to) {
  constexpr std::int64_t kMostTilesDown = 65535;
  const std::int64_t rows = from.shape().num_rows();
  const std::int64_t cols = from.shape().back();
  const dim3 grid(static_cast<unsigned>(divide_up(cols, kTile)),
                  static_cast<unsigned>(std::min(divide_up(rows, kTile), kMostTilesDown)));
  with_element_type("transpose", from, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(from.device(), "transpose", {grid, kThreads}, transpose_kernel<T>, rows, cols,
           elements<T>(from), elements<T>(to));
  });
}

}  // namespace chaski::cuda
