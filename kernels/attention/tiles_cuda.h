#pragma once

// What the attention kernels for GPUs are made of: operands, tiles of rows in shared memory,
// products of tiles. For attention_*_cuda.cu files only.
//
// Products of bf16 tiles run on tensor cores. Their plain twins, with the same tiles and the same
// elements in the same lanes, serve fp32 and compilers without those instructions.

#include <climits>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/cuda_tensor_cores.h"
#include "kernels/device/cuda_device.h"
#include "kernels/device/cuda_launch.h"

namespace chaski::cuda {

// Rows of queries, keys and values may lie anywhere; heads lie side by side in a row. Query i of a
// sequence stands at past + i and sees keys first … past + i (see first_key).
template <typename T>
struct AttentionOperands {
  int batch;
  int num_queries;  // a sequence
  int past;         // a sequence has past + num_queries keys
  int num_heads;
  int num_kv_heads;
  int head_dim;
  const T* queries;
  std::int64_t query_stride;  // elements between rows
  const T* keys;
  const T* values;
  std::int64_t kv_stride;
  const std::int32_t* positions;  // [batch · num_queries] or null
  float scale;                    // of the scores
  bool wide;                      // every head of every row starts at a multiple of 16 bytes

  __host__ __device__ int num_keys() const { return past + num_queries; }
  __device__ std::int64_t query_offset(int sequence, int head, int query) const {
    return (static_cast<std::int64_t>(sequence) * num_queries + query) * query_stride +
           static_cast<std::int64_t>(head) * head_dim;
  }
  __device__ std::int64_t kv_offset(int sequence, int kv_head, int key) const {
    return (static_cast<std::int64_t>(sequence) * num_keys() + key) * kv_stride +
           static_cast<std::int64_t>(kv_head) * head_dim;
  }
  // In a matrix [tokens, num_heads · head_dim].
  __device__ std::int64_t out_offset(int sequence, int head, int query) const {
    return ((static_cast<std::int64_t>(sequence) * num_queries + query) * num_heads + head) *
           head_dim;
  }
  // In a matrix [batch, num_heads, num_queries].
  __device__ std::int64_t statistic_offset(int sequence, int head, int query) const {
    return (static_cast<std::int64_t>(sequence) * num_heads + head) * num_queries + query;
  }
  __device__ std::int64_t out_stride() const {
    return static_cast<std::int64_t>(num_heads) * head_dim;
  }
  // The first key that a query sees; none for queries behind the last.
  __device__ int first_key(int sequence, int query) const {
    if (query >= num_queries) return INT_MAX;
    if (positions == nullptr) return 0;
    const int here = past + query;
    const int position = positions[static_cast<std::int64_t>(sequence) * num_queries + query];
    return here - max(0, min(position, here));
  }
};

template <typename T>
AttentionOperands<T> fused_operands(const AttentionShape& shape, const Tensor& qkv,
                                    const Tensor& positions) {
  const T* rows = elements<T>(qkv);
  return {static_cast<int>(shape.batch),
          static_cast<int>(shape.sequence_length),
          0,
          static_cast<int>(shape.num_heads),
          static_cast<int>(shape.num_kv_heads),
          static_cast<int>(shape.head_dim),
          rows,
          shape.qkv_size(),
          rows + shape.query_size(),
          rows + shape.query_size() + shape.kv_size(),
          shape.qkv_size(),
          positions ? positions.i32() : nullptr,
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim))),
          shape.head_dim % kVectorWidth<T> == 0};
}

// Calls `work` with the columns that tiles have for heads of this size: head_dim padded by zeros.
template <typename Work>
void with_tile_columns(std::int64_t head_dim, const Work& work) {
  if (head_dim <= 64) return work(std::integral_constant<int, 64>());
  if (head_dim <= 96) return work(std::integral_constant<int, 96>());
  if (head_dim <= 128) return work(std::integral_constant<int, 128>());
  return work(std::integral_constant<int, 256>());
}

// Elements between the rows of a tile of `columns` columns in shared memory. 16 bytes more than the
// row, so that what lanes read at once from neighbouring rows lies in different banks.
template <typename T>
__host__ __device__ constexpr int tile_stride(int columns) {
  return columns + kVectorWidth<T>;
}

// By all threads of a block: to [tile_rows, tile_columns] = from [rows, columns], zeros around it.
// tile_columns is a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void load_tile(const T* from, std::int64_t stride, int rows, int columns,
                                          bool wide, T* to, int tile_rows, int tile_columns) {
  constexpr int kWidth = kVectorWidth<T>;
  const int vectors = tile_columns / kWidth;
  for (int index = threadIdx.x; index < tile_rows * vectors; index += blockDim.x) {
    const int row = index / vectors;
    const int column = (index - row * vectors) * kWidth;
    Vector<T> vector;
    CHASKI_UNROLL
    for (int i = 0; i < kWidth; ++i) vector.at[i] = from_float<T>(0.0f);
    if (row < rows) {
      const T* source = from + row * stride + column;
      if (wide) {
        if (column < columns) vector = *reinterpret_cast<const Vector<T>*>(source);
      } else {
        CHASKI_UNROLL
        for (int i = 0; i < kWidth; ++i) {
          if (column + i < columns) vector.at[i] = source[i];
        }
      }
    }
    *reinterpret_cast<Vector<T>*>(to + row * tile_stride<T>(tile_columns) + column) = vector;
  }
}

// The reverse: the rows and columns that exist.
template <typename T>
__device__ __forceinline__ void store_tile(const T* from, int tile_columns, T* to,
                                           std::int64_t stride, int rows, int columns, bool wide) {
  const int width = wide ? kVectorWidth<T> : 1;
  const int vectors = (columns + width - 1) / width;
  for (int index = threadIdx.x; index < rows * vectors; index += blockDim.x) {
    const int row = index / vectors;
    const int column = (index - row * vectors) * width;
    const T* source = from + row * tile_stride<T>(tile_columns) + column;
    T* target = to + row * stride + column;
    if (wide) {
      *reinterpret_cast<Vector<T>*>(target) = *reinterpret_cast<const Vector<T>*>(source);
    } else {
      *target = *source;
    }
  }
}

// A warp's sums of a product of 16 rows and 8·kTiles columns, in the layout of mma.m16n8: of each
// tile of 8 columns a lane holds the elements (row_of(i), column_of(tile, i)).
template <int kTiles>
struct Accumulator {
  float at[kTiles][4];

  __device__ Accumulator() {
    CHASKI_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      CHASKI_UNROLL
      for (int i = 0; i < 4; ++i) at[tile][i] = 0.0f;
    }
  }
  __device__ static int row_of(int i) {
    return static_cast<int>(threadIdx.x) % kWarpSize / 4 + i / 2 * 8;
  }
  __device__ static int column_of(int tile, int i) {
    return tile * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
  }
  // factor · sums, rounded, to a matrix in shared memory.
  template <typename T>
  __device__ void store(float factor, T* to, int stride) const {
    CHASKI_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      CHASKI_UNROLL
      for (int i = 0; i < 4; ++i)
        to[row_of(i) * stride + column_of(tile, i)] = from_float<T>(factor * at[tile][i]);
    }
  }
};

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// sums += a [16, kDepth] · b [8·kTiles, kDepth]ᵀ, by one warp; both in shared memory.
template <int kDepth, typename T, int kTiles>
__device__ __forceinline__ void multiply_transposed(Accumulator<kTiles>& sums, const T* a,
                                                    int a_stride, const T* b, int b_stride) {
  const auto load = [](const T* from) { return *reinterpret_cast<const Four<T>*>(from); };
  const T* upper = a + Accumulator<kTiles>::row_of(0) * a_stride;
  const T* lower = a + Accumulator<kTiles>::row_of(2) * a_stride;
  for (int k = 0; k < kDepth; k += 4) {
    const Four<T> x0 = load(upper + k);
    const Four<T> x1 = load(lower + k);
    CHASKI_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const T* columns = b + Accumulator<kTiles>::column_of(tile, 0) * b_stride + k;
      const Four<T> y0 = load(columns);
      const Four<T> y1 = load(columns + b_stride);
      float* sum = sums.at[tile];
      CHASKI_UNROLL
      for (int i = 0; i < 4; ++i) {
        sum[0] = fmaf(to_float(x0.at[i]), to_float(y0.at[i]), sum[0]);
        sum[1] = fmaf(to_float(x0.at[i]), to_float(y1.at[i]), sum[1]);
        sum[2] = fmaf(to_float(x1.at[i]), to_float(y0.at[i]), sum[2]);
        sum[3] = fmaf(to_float(x1.at[i]), to_float(y1.at[i]), sum[3]);
      }
    }
  }
}

// sums += a [16, kDepth] · b [kDepth, 8·kTiles], by one warp; both in shared memory.
template <int kDepth, typename T, int kTiles>
__device__ __forceinline__ void multiply(Accumulator<kTiles>& sums, const T* a, int a_stride,
                                         const T* b, int b_stride) {
  const T* upper = a + Accumulator<kTiles>::row_of(0) * a_stride;
  const T* lower = a + Accumulator<kTiles>::row_of(2) * a_stride;
  for (int k = 0; k < kDepth; ++k) {
    const float x0 = to_float(upper[k]);
    const float x1 = to_float(lower[k]);
    CHASKI_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const T* columns = b + k * b_stride + Accumulator<kTiles>::column_of(tile, 0);
      const float y0 = to_float(columns[0]);
      const float y1 = to_float(columns[1]);
      float* sum = sums.at[tile];
      sum[0] = fmaf(x0, y0, sum[0]);
      sum[1] = fmaf(x0, y1, sum[1]);
      sum[2] = fmaf(x1, y0, sum[2]);
      sum[3] = fmaf(x1, y1, sum[3]);
    }
  }
}

#ifdef CHASKI_TENSOR_CORES

// Squares of a: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15. Squares of b: its columns
// 0-7 at depths 0-7 and 8-15, then its columns 8-15; where only 8 columns are left, those twice.
template <int kDepth, int kTiles>
__device__ __forceinline__ void multiply_transposed(Accumulator<kTiles>& sums, const bf16* a,
                                                    int a_stride, const bf16* b, int b_stride) {
  const int lane = threadIdx.x % kWarpSize;
  const bf16* a_row = a + lane % 16 * a_stride + lane / 16 * 8;
  const bf16* b_row = b + lane % 8 * b_stride + lane / 8 % 2 * 8;
  const int second_tile = lane / 16 * 8 * b_stride;
  CHASKI_UNROLL
  for (int k = 0; k < kDepth; k += 16) {
    unsigned rows[4];
    load_squares(rows, a_row + k);
    CHASKI_UNROLL
    for (int tile = 0; tile < kTiles; tile += 2) {
      unsigned columns[4];
      load_squares(columns,
                   b_row + tile * 8 * b_stride + k + (tile + 1 < kTiles ? second_tile : 0));
      multiply_add(sums.at[tile], rows, columns[0], columns[1]);
      if (tile + 1 < kTiles)
        multiply_add(sums.at[tile + 1 < kTiles ? tile + 1 : tile], rows, columns[2], columns[3]);
    }
  }
}

template <int kDepth, int kTiles>
__device__ __forceinline__ void multiply(Accumulator<kTiles>& sums, const bf16* a, int a_stride,
                                         const bf16* b, int b_stride) {
  const int lane = threadIdx.x % kWarpSize;
  const bf16* a_row = a + lane % 16 * a_stride + lane / 16 * 8;
  const bf16* b_row = b + lane % 16 * b_stride;
  const int second_tile = lane / 16 * 8;
  CHASKI_UNROLL
  for (int k = 0; k < kDepth; k += 16) {
    unsigned rows[4];
    load_squares(rows, a_row + k);
    CHASKI_UNROLL
    for (int tile = 0; tile < kTiles; tile += 2) {
      unsigned columns[4];
      load_transposed_squares(
          columns, b_row + k * b_stride + tile * 8 + (tile + 1 < kTiles ? second_tile : 0));
      multiply_add(sums.at[tile], rows, columns[0], columns[1]);
      if (tile + 1 < kTiles)
        multiply_add(sums.at[tile + 1 < kTiles ? tile + 1 : tile], rows, columns[2], columns[3]);
    }
  }
}

#endif

// e^x. Of bf16 weights by the hardware's fast exponential: its error is far below their rounding.
template <typename T>
__device__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return __expf(x);
  }
}

// The tiled forward pass over operands anywhere. log_sum_exp may be null. There is at least one
// query.
template <typename T>
void run_attention_forward(Device& device, const AttentionOperands<T>& operands, T* out,
                           float* log_sum_exp);

// What to subtract from scores whose maximum this is; 0 where there were none.
__device__ inline float finite_maximum(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

}  // namespace chaski::cuda
