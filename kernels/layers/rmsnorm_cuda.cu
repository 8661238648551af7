#include <algorithm>

#include "kernels/device/cuda_pack.h"
#include "kernels/layers/rmsnorm_cuda.h"

namespace chaski::cuda {
namespace {

// A row stays in the registers of a team, a warp or a block: each thread holds kPacks packs of it,
// those at columns (p · kTeam + its place) · kWidth. Rows that are too long for that, or that packs
// do not fit, take the *_long kernels, which read them twice.
constexpr int kBlockTeam = 256;
constexpr int kMostPacks = 4;  // of a thread of a block

// In every thread of the team; all threads of the block call it where the team is the block.
template <int kTeam>
__device__ float team_sum(float x) {
  if constexpr (kTeam == kWarpSize) {
    return warp_sum(x);
  } else {
    return block_sum<kTeam>(x);
  }
}

__device__ float inverse_rms_of(float sum_of_squares, std::int64_t hidden, float epsilon) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(hidden) + epsilon);
}

template <typename T>
struct Forward {
  const T* residual;
  const T* delta;  // may be null
  const T* weight;
  T* residual_out;
  T* y;
  float* inverse_rms;  // may be null
  float epsilon;
  std::int64_t rows;
  std::int64_t hidden;
};

template <int kTeam>
constexpr int kForwardThreads = kTeam == kWarpSize ? 4 * kWarpSize : kTeam;

// What is normalized is what residual_out holds, rounded where it is bf16: the backward pass has
// nothing else.
template <typename T, int kWidth, int kPacks, int kTeam>
__global__ void __launch_bounds__(kForwardThreads<kTeam>) forward_kernel(Forward<T> f) {
  constexpr int kRows = kForwardThreads<kTeam> / kTeam;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kTeam;
  if (row >= f.rows) return;  // all of the team
  const int place = threadIdx.x % kTeam;
  const std::int64_t begin = row * f.hidden;
  Pack<T, kWidth> x[kPacks] = {};
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * kTeam + place) * kWidth;
    if (column < f.hidden) x[p] = Pack<T, kWidth>::load(f.residual + begin + column);
  }
  if (f.delta != nullptr) {
    Pack<T, kWidth> delta[kPacks] = {};
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kTeam + place) * kWidth;
      if (column < f.hidden) delta[p] = Pack<T, kWidth>::load(f.delta + begin + column);
    }
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kTeam + place) * kWidth;
      for (int k = 0; k < kWidth; ++k) x[p].at[k] += delta[p].at[k];
      x[p].round();
      if (column < f.hidden) x[p].store(f.residual_out + begin + column);
    }
  }
  float sum = 0.0f;
  for (int p = 0; p < kPacks; ++p)
    for (int k = 0; k < kWidth; ++k) sum += x[p].at[k] * x[p].at[k];
  const float scale = inverse_rms_of(team_sum<kTeam>(sum), f.hidden, f.epsilon);
  if (place == 0 && f.inverse_rms != nullptr) f.inverse_rms[row] = scale;
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * kTeam + place) * kWidth;
    if (column >= f.hidden) continue;
    const auto weight = Pack<T, kWidth>::load(f.weight + column);
    for (int k = 0; k < kWidth; ++k) x[p].at[k] = x[p].at[k] * scale * weight.at[k];
    x[p].store(f.y + begin + column);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockTeam) forward_long_kernel(Forward<T> f) {
  const std::int64_t begin = blockIdx.x * f.hidden;
  const T* x = (f.delta != nullptr ? f.residual_out : f.residual) + begin;
  float sum = 0.0f;
  for (std::int64_t i = threadIdx.x; i < f.hidden; i += kBlockTeam) {
    if (f.delta != nullptr) {
      f.residual_out[begin + i] =
          from_float<T>(to_float(f.residual[begin + i]) + to_float(f.delta[begin + i]));
    }
    const float value = to_float(x[i]);
    sum += value * value;
  }
  const float scale = inverse_rms_of(block_sum<kBlockTeam>(sum), f.hidden, f.epsilon);
  if (threadIdx.x == 0 && f.inverse_rms != nullptr) f.inverse_rms[blockIdx.x] = scale;
  for (std::int64_t i = threadIdx.x; i < f.hidden; i += kBlockTeam)
    f.y[begin + i] = from_float<T>(to_float(x[i]) * scale * to_float(f.weight[i]));
}

template <typename T>
struct Recompute {
  static constexpr int kWidth = kVectorWidth<T>;
  const T* x;
  const T* weight;
  const float* inverse_rms;
  T* y;
  std::int64_t hidden;

  bool aligned() const { return hidden % kWidth == 0 && are_aligned<kWidth>(x, weight, y); }
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    const std::int64_t row = i / hidden;
    const float scale = inverse_rms[row];
    auto pack = Pack<T, kCount>::load(x + i);
    const auto factor = Pack<T, kCount>::load(weight + (i - row * hidden));
    for (int k = 0; k < kCount; ++k) pack.at[k] = pack.at[k] * scale * factor.at[k];
    pack.store(y + i);
  }
};

template <typename T>
struct Backward {
  const T* x;
  const T* weight;
  const float* inverse_rms;
  const T* dy;
  T* dx;
  float* dweight;  // [blocks, hidden], a partial sum of each block; null: not wanted
  std::int64_t rows;
  std::int64_t hidden;
  std::int64_t rows_per_block;
};

// With g = dy · weight: dx += rstd · (g - x · rstd² · mean(g · x)). A block goes through its rows.
template <typename T, int kWidth, int kPacks, int kTeam>
__global__ void __launch_bounds__(kTeam) backward_kernel(Backward<T> b) {
  Pack<float, kWidth> dweight[kPacks] = {};
  const std::int64_t first = blockIdx.x * b.rows_per_block;
  const std::int64_t end = first + b.rows_per_block < b.rows ? first + b.rows_per_block : b.rows;
  for (std::int64_t row = first; row < end; ++row) {
    const std::int64_t begin = row * b.hidden;
    const float scale = b.inverse_rms[row];
    Pack<T, kWidth> x[kPacks] = {};
    Pack<T, kWidth> dy[kPacks] = {};
    Pack<T, kWidth> dx[kPacks] = {};
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kTeam + static_cast<int>(threadIdx.x)) * kWidth;
      if (column >= b.hidden) continue;
      x[p] = Pack<T, kWidth>::load(b.x + begin + column);
      dy[p] = Pack<T, kWidth>::load(b.dy + begin + column);
      dx[p] = Pack<T, kWidth>::load(b.dx + begin + column);
    }
    float dot = 0.0f;
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kTeam + static_cast<int>(threadIdx.x)) * kWidth;
      if (column >= b.hidden) continue;
      const auto weight = Pack<T, kWidth>::load(b.weight + column);
      for (int k = 0; k < kWidth; ++k) {
        dweight[p].at[k] += dy[p].at[k] * (x[p].at[k] * scale);
        dy[p].at[k] *= weight.at[k];
        dot += dy[p].at[k] * x[p].at[k];
      }
    }
    const float slope =
        block_sum<kTeam>(dot) * scale * scale * scale / static_cast<float>(b.hidden);
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kTeam + static_cast<int>(threadIdx.x)) * kWidth;
      if (column >= b.hidden) continue;
      for (int k = 0; k < kWidth; ++k) dx[p].at[k] += dy[p].at[k] * scale - x[p].at[k] * slope;
      dx[p].store(b.dx + begin + column);
    }
  }
  if (b.dweight == nullptr) return;
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * kTeam + static_cast<int>(threadIdx.x)) * kWidth;
    if (column < b.hidden) dweight[p].store(b.dweight + blockIdx.x * b.hidden + column);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockTeam) backward_long_kernel(Backward<T> b) {
  float* dweight = b.dweight == nullptr ? nullptr : b.dweight + blockIdx.x * b.hidden;
  if (dweight != nullptr) {
    for (std::int64_t i = threadIdx.x; i < b.hidden; i += kBlockTeam) dweight[i] = 0.0f;
  }
  const std::int64_t first = blockIdx.x * b.rows_per_block;
  const std::int64_t end = first + b.rows_per_block < b.rows ? first + b.rows_per_block : b.rows;
  for (std::int64_t row = first; row < end; ++row) {
    const T* x = b.x + row * b.hidden;
    const T* dy = b.dy + row * b.hidden;
    T* dx = b.dx + row * b.hidden;
    const float scale = b.inverse_rms[row];
    float dot = 0.0f;
    for (std::int64_t i = threadIdx.x; i < b.hidden; i += kBlockTeam)
      dot += to_float(dy[i]) * to_float(b.weight[i]) * to_float(x[i]);
    const float slope =
        block_sum<kBlockTeam>(dot) * scale * scale * scale / static_cast<float>(b.hidden);
    for (std::int64_t i = threadIdx.x; i < b.hidden; i += kBlockTeam) {
      const float gradient = to_float(dy[i]);
      const float value = to_float(x[i]);
      dx[i] = from_float<T>(to_float(dx[i]) +
                            (gradient * to_float(b.weight[i]) * scale - value * slope));
      if (dweight != nullptr) dweight[i] += gradient * (value * scale);
    }
  }
}

constexpr int kAddThreads = 512;
constexpr int kAddWarps = kAddThreads / kWarpSize;

// A lane for each column; the warps share the partial sums among them.
template <typename G>
__global__ void __launch_bounds__(kAddThreads)
    add_partial_sums_kernel(const float* partial_sums, std::int64_t num_partial_sums,
                            std::int64_t hidden, G* dweight) {
  __shared__ float sums[kAddWarps][kWarpSize];
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + lane;
  float sum = 0.0f;
  if (column < hidden) {
#pragma unroll 8
    for (std::int64_t n = warp; n < num_partial_sums; n += kAddWarps)
      sum += partial_sums[n * hidden + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= hidden) return;
  float total = 0.0f;
  for (int w = 0; w < kAddWarps; ++w) total += sums[w][lane];
  dweight[column] = from_float<G>(to_float(dweight[column]) + total);
}

template <typename T, int kPacks, int kTeam>
void launch_forward(Device& device, const char* op, const Forward<T>& f) {
  constexpr int kThreads = kForwardThreads<kTeam>;
  launch(device, op, {grid_of(divide_up(f.rows, kThreads / kTeam)), kThreads},
         forward_kernel<T, kVectorWidth<T>, kPacks, kTeam>, f);
}

template <typename T, int kPacks, int kTeam>
void launch_backward(Device& device, const char* op, const Backward<T>& b) {
  launch(device, op, {grid_of(divide_up(b.rows, b.rows_per_block)), kTeam},
         backward_kernel<T, kVectorWidth<T>, kPacks, kTeam>, b);
}

// Whether rows of `hidden` elements fit the registers of a block.
template <typename T>
bool fits(std::int64_t hidden) {
  constexpr int kWidth = kVectorWidth<T>;
  return hidden % kWidth == 0 && hidden <= kBlockTeam * kMostPacks * kWidth;
}

template <typename T>
void backward(Device& device, const char* op, const Backward<T>& b) {
  const std::int64_t packs = divide_up(b.hidden, kVectorWidth<T>);
  if (!fits<T>(b.hidden) ||
      !are_aligned<kVectorWidth<T>>(b.x, b.weight, b.dy, static_cast<const T*>(b.dx))) {
    launch(device, op, {grid_of(divide_up(b.rows, b.rows_per_block)), kBlockTeam},
           backward_long_kernel<T>, b);
  } else if (packs <= kBlockTeam / 2) {
    launch_backward<T, 1, kBlockTeam / 2>(device, op, b);
  } else if (packs <= kBlockTeam) {
    launch_backward<T, 1, kBlockTeam>(device, op, b);
  } else if (packs <= 2 * kBlockTeam) {
    launch_backward<T, 2, kBlockTeam>(device, op, b);
  } else {
    launch_backward<T, kMostPacks / 2, 2 * kBlockTeam>(device, op, b);
  }
}

}  // namespace

void rmsnorm_forward(const char* op, const Tensor& residual, const Tensor& delta,
                     const Tensor& weight, float epsilon, const Tensor& residual_out,
                     const Tensor& y, const Tensor& inverse_rms) {
  Device& device = residual.device();
  with_element_type(op, residual, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Forward<T> f = {
        .residual = elements<T>(residual),
        .delta = elements<T>(delta),
        .weight = elements<T>(weight),
        .residual_out = elements<T>(residual_out),
        .y = elements<T>(y),
        .inverse_rms = elements<float>(inverse_rms),
        .epsilon = epsilon,
        .rows = residual.shape().num_rows(),
        .hidden = residual.shape().back(),
    };
    if (f.rows == 0) return;
    constexpr int kWidth = kVectorWidth<T>;
    const std::int64_t packs = divide_up(f.hidden, kWidth);
    if (!fits<T>(f.hidden) ||
        !are_aligned<kWidth>(f.residual, f.delta, f.weight, f.residual_out, f.y)) {
      launch(device, op, {grid_of(f.rows), kBlockTeam}, forward_long_kernel<T>, f);
    } else if (packs <= 4 * kWarpSize) {
      launch_forward<T, 4, kWarpSize>(device, op, f);
    } else if (packs <= 8 * kWarpSize) {
      launch_forward<T, 8, kWarpSize>(device, op, f);
    } else {
      launch_forward<T, kMostPacks, kBlockTeam>(device, op, f);
    }
  });
}

void rmsnorm_recompute(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& y) {
  constexpr const char* kOp = "rmsnorm_recompute";
  with_element_type(kOp, x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    map(x.device(), kOp, x.num_elements(),
        Recompute<T>{elements<T>(x), elements<T>(weight), inverse_rms.f32(), elements<T>(y),
                     x.shape().back()});
  });
}

void rmsnorm_backward(const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                      const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                      const Tensor& partial_sums) {
  constexpr const char* kOp = "rmsnorm_backward";
  Device& device = x.device();
  const std::int64_t rows = x.shape().num_rows();
  const std::int64_t hidden = x.shape().back();
  if (rows == 0) return;
  with_element_type(kOp, x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    backward(device, kOp,
             Backward<T>{
                 .x = elements<T>(x),
                 .weight = elements<T>(weight),
                 .inverse_rms = inverse_rms.f32(),
                 .dy = elements<T>(dy),
                 .dx = elements<T>(dx),
                 .dweight = elements<float>(partial_sums),
                 .rows = rows,
                 .hidden = hidden,
                 .rows_per_block = rmsnorm_rows_of_sum(rows),
             });
  });
  if (!dweight) return;
  with_element_type(kOp, dweight, [&](auto* type) {
    using G = std::remove_pointer_t<decltype(type)>;
    launch(device, kOp, {grid_of(divide_up(hidden, kWarpSize)), kAddThreads},
           add_partial_sums_kernel<G>, partial_sums.f32(), partial_sums.dim(0), hidden,
           elements<G>(dweight));
  });
}

}  // namespace chaski::cuda
