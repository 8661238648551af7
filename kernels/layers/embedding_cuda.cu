#include "kernels/device/cuda_pack.h"
#include "kernels/layers/embedding_cuda.h"

namespace chaski::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// A block for each token.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* table, const std::int32_t* tokens, T* out, std::int64_t vocab_size,
                   std::int64_t hidden) {
  const std::int64_t id = tokens[blockIdx.x];
  const bool known = id >= 0 && id < vocab_size;
  const T* row = known ? table + id * hidden : nullptr;
  T* to = out + blockIdx.x * hidden;
  for (std::int64_t i = threadIdx.x * kWidth; i < hidden; i += kThreads * kWidth) {
    Pack<T, kWidth> pack;
    for (int k = 0; k < kWidth; ++k) pack.at[k] = NAN;
    if (known) pack = Pack<T, kWidth>::load(row + i);
    pack.store(to + i);
  }
}

// Tokens that a block looks at between two barriers: each warp at neighbouring ones, kRounds times
// one a lane.
constexpr int kRounds = 4;
constexpr int kTile = kThreads * kRounds;

// Whether a token before `token` has the same id; the same in every thread. From the nearest on, as
// frequent ids are found soon.
__device__ bool occurs_before(const std::int32_t* tokens, std::int64_t token, std::int32_t id) {
  for (std::int64_t end = token; end > 0; end -= kTile) {
    bool found = false;
    for (int round = 0; round < kRounds; ++round) {
      const std::int64_t t = end - 1 - round * kThreads - threadIdx.x;
      found = found || (t >= 0 && tokens[t] == id);
    }
    if (__syncthreads_or(found)) return true;
  }
  return false;
}

// Lists the tokens from `begin` on, at most kTile, whose id is `id`, in order, as offsets from
// `begin`; returns their number. Its first barrier stands before it writes to the list, whose last
// readers have come there then, its last one where it ends.
__device__ int list_tile(const std::int32_t* tokens, std::int64_t begin, std::int64_t num_tokens,
                         std::int32_t id, int* list) {
  __shared__ int counts[kWarps];
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int first = warp * kWarpSize * kRounds + lane;
  unsigned found[kRounds];
  int count = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t t = begin + first + round * kWarpSize;
    found[round] = __ballot_sync(kFullWarp, t < num_tokens && tokens[t] == id);
    count += __popc(found[round]);
  }
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  int place = 0;
  int total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) place += counts[w];
    total += counts[w];
  }
  for (int round = 0; round < kRounds; ++round) {
    const unsigned before = found[round] & ((1u << lane) - 1);
    if (found[round] >> lane & 1u) list[place + __popc(before)] = first + round * kWarpSize;
    place += __popc(found[round]);
  }
  __syncthreads();
  return total;
}

// A block for each token and each kThreads · kWidth columns. That of an id's first token adds all
// of its rows, in the order of tokens; the others have nothing to do. Four blocks at a time on a
// multiprocessor are enough: aiming for more, the compiler spills registers on some architectures.
template <typename T, typename G, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const T* dout, const std::int32_t* tokens, G* dtable, std::int64_t num_tokens,
                    std::int64_t vocab_size, std::int64_t hidden) {
  __shared__ int list[kTile];
  const std::int64_t token = blockIdx.x;
  const std::int32_t id = tokens[token];
  if (id < 0 || id >= vocab_size || occurs_before(tokens, token, id)) return;
  const std::int64_t column =
      (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kWidth;
  const bool has_column = column < hidden;
  G* to = dtable + id * hidden + column;
  Pack<G, kWidth> total = {};
  if (has_column) total = Pack<G, kWidth>::load(to);
  for (std::int64_t begin = token; begin < num_tokens; begin += kTile) {
    const int count = list_tile(tokens, begin, num_tokens, id, list);
    if (!has_column) continue;
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      const auto row = Pack<T, kWidth>::load(dout + (begin + list[n]) * hidden + column);
      for (int k = 0; k < kWidth; ++k) total.at[k] += row.at[k];
    }
  }
  if (has_column) total.store(to);
}

}  // namespace

void embedding_forward(const Tensor& table, const Tensor& tokens, const Tensor& out) {
  constexpr const char* kOp = "embedding_forward";
  const std::int64_t hidden = table.shape().back();
  const std::int64_t num_tokens = tokens.num_elements();
  if (num_tokens == 0) return;
  with_element_type(kOp, table, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    const T* rows = elements<T>(table);
    T* to = elements<T>(out);
    const bool wide = hidden % kWidth == 0 && are_aligned<kWidth>(rows, to);
    launch(table.device(), kOp, {grid_of(num_tokens), kThreads},
           wide ? forward_kernel<T, kWidth> : forward_kernel<T, 1>, rows, tokens.i32(), to,
           table.shape().num_rows(), hidden);
  });
}

void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& dtable) {
  constexpr const char* kOp = "embedding_backward";
  const std::int64_t hidden = dtable.shape().back();
  const std::int64_t num_tokens = tokens.num_elements();
  if (num_tokens == 0) return;
  with_element_type(kOp, dout, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_element_type(kOp, dtable, [&](auto* gradient_type) {
      using G = std::remove_pointer_t<decltype(gradient_type)>;
      constexpr int kWidth = kVectorWidth<T>;
      const T* rows = elements<T>(dout);
      G* to = elements<G>(dtable);
      const bool wide =
          hidden % kWidth == 0 && are_aligned<kWidth>(rows) && are_aligned<kWidth>(to);
      dim3 grid = grid_of(num_tokens);
      grid.y = static_cast<unsigned>(
          divide_up(hidden, static_cast<std::int64_t>(kThreads) * (wide ? kWidth : 1)));
      launch(dout.device(), kOp, {grid, kThreads},
             wide ? backward_kernel<T, G, kWidth> : backward_kernel<T, G, 1>, rows, tokens.i32(),
             to, num_tokens, dtable.shape().num_rows(), hidden);
    });
  });
}

}  // namespace chaski::cuda
