#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/tiles_cuda.h"

namespace chaski::cuda {
namespace {

// A warp takes 16 queries. Chosen so that a block's shared memory fits every GPU since sm_80.
template <typename T, int kColumns>
struct ForwardTiles {
  static constexpr bool kIsFloat = std::is_same_v<T, float>;
  static constexpr int kQueries = kIsFloat && kColumns == 256 ? 32 : 64;
  static constexpr int kKeys =
      kColumns == 256 ? (kIsFloat ? 16 : 32) : (kIsFloat && kColumns > 64 ? 32 : 64);
  static constexpr int kThreads = kQueries / 16 * kWarpSize;
  static constexpr int kStride = tile_stride<T>(kColumns);
  static constexpr int kWeightStride = tile_stride<T>(kKeys);
  static constexpr std::size_t kSharedBytes =
      sizeof(T) * ((kQueries + 2 * kKeys) * kStride + kQueries * kWeightStride);
  static_assert(kSharedBytes <= 98 * 1024);
};

// The running softmax of the two query rows that a lane has elements of.
struct RowState {
  int position;   // the last key that the query sees
  int first_key;  // the first
  float maximum = -INFINITY;
  float total = 0.0f;  // of the lane's own weights only, until the end
};

__device__ float maximum_of_four_lanes(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}
__device__ float sum_of_four_lanes(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}

// Turns the scores of row half `half` (0: elements 0 and 1, 1: elements 2 and 3) of keys first …
// into weights e^(score - maximum), and rescales what was summed with the old maximum.
template <typename T, int kScoreTiles, int kSumTiles>
__device__ __forceinline__ void softmax_row(Accumulator<kScoreTiles>& scores,
                                            Accumulator<kSumTiles>& sums, RowState& row, int half,
                                            int first, float scale) {
  float maximum = row.maximum;
  CHASKI_UNROLL
  for (int tile = 0; tile < kScoreTiles; ++tile) {
    CHASKI_UNROLL
    for (int i = 2 * half; i < 2 * half + 2; ++i) {
      const int key = first + Accumulator<kScoreTiles>::column_of(tile, i);
      float& score = scores.at[tile][i];
      score = key >= row.first_key && key <= row.position ? score * scale : -INFINITY;
      maximum = fmaxf(maximum, score);
    }
  }
  maximum = maximum_of_four_lanes(maximum);
  const float subtracted = finite_maximum(maximum);
  const float factor = exponential<T>(row.maximum - subtracted);
  row.maximum = maximum;
  row.total *= factor;
  CHASKI_UNROLL
  for (int tile = 0; tile < kScoreTiles; ++tile) {
    CHASKI_UNROLL
    for (int i = 2 * half; i < 2 * half + 2; ++i) {
      float& score = scores.at[tile][i];
      score = exponential<T>(score - subtracted);
      row.total += score;
    }
  }
  CHASKI_UNROLL
  for (int tile = 0; tile < kSumTiles; ++tile) {
    sums.at[tile][2 * half] *= factor;
    sums.at[tile][2 * half + 1] *= factor;
  }
}

// Two blocks are what the shared memory of these architectures has room for; aiming for more, the
// compiler spills registers.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
#define CHASKI_FORWARD_BOUNDS(threads) __launch_bounds__(threads, 2)
#else
#define CHASKI_FORWARD_BOUNDS(threads) __launch_bounds__(threads)
#endif

// A block is a tile of queries of one head. FlashAttention-2, arXiv 2307.08691, Alg. 1.
template <typename T, int kColumns>
__global__ void CHASKI_FORWARD_BOUNDS((ForwardTiles<T, kColumns>::kThreads))
    forward_kernel(AttentionOperands<T> operands, T* out, float* log_sum_exp) {
  using Tiles = ForwardTiles<T, kColumns>;
  constexpr int kStride = Tiles::kStride;
  T* queries = dynamic_shared<T>();
  T* keys = queries + Tiles::kQueries * kStride;
  T* values = keys + Tiles::kKeys * kStride;
  T* weights = values + Tiles::kKeys * kStride;

  // The last tile sees the most keys: it goes first. Neighbours share keys and values.
  const int heads = operands.num_heads * operands.batch;
  const int tile = (operands.num_queries - 1) / Tiles::kQueries - blockIdx.x / heads;
  const int sequence = blockIdx.x % heads / operands.num_heads;
  const int head = blockIdx.x % operands.num_heads;
  const int kv_head = head / (operands.num_heads / operands.num_kv_heads);
  const int first_query = tile * Tiles::kQueries;
  const int num_rows = min(Tiles::kQueries, operands.num_queries - first_query);
  load_tile(operands.queries + operands.query_offset(sequence, head, first_query),
            operands.query_stride, num_rows, operands.head_dim, operands.wide, queries,
            Tiles::kQueries, kColumns);

  const int warp_row = static_cast<int>(threadIdx.x) / kWarpSize * 16;
  using Scores = Accumulator<Tiles::kKeys / 8>;
  RowState rows[2];
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + warp_row + Scores::row_of(2 * half);
    rows[half].position = operands.past + query;
    rows[half].first_key = operands.first_key(sequence, query);
  }
  const int earliest =
      block_reduce<Tiles::kThreads>(min(rows[0].first_key, rows[1].first_key), INT_MAX,
                                    [](int a, int b) { return a < b ? a : b; });
  const int last_key = operands.past + first_query + num_rows - 1;
  Accumulator<kColumns / 8> sums;
  for (int first = earliest / Tiles::kKeys * Tiles::kKeys; first <= last_key;
       first += Tiles::kKeys) {
    const int num_keys = min(Tiles::kKeys, operands.num_keys() - first);
    const std::int64_t offset = operands.kv_offset(sequence, kv_head, first);
    __syncthreads();  // the tiles of the last round have been read
    load_tile(operands.keys + offset, operands.kv_stride, num_keys, operands.head_dim,
              operands.wide, keys, Tiles::kKeys, kColumns);
    load_tile(operands.values + offset, operands.kv_stride, num_keys, operands.head_dim,
              operands.wide, values, Tiles::kKeys, kColumns);
    __syncthreads();
    Scores scores;
    multiply_transposed<kColumns>(scores, queries + warp_row * kStride, kStride, keys, kStride);
    softmax_row<T>(scores, sums, rows[0], 0, first, operands.scale);
    softmax_row<T>(scores, sums, rows[1], 1, first, operands.scale);
    scores.store(1.0f, weights + warp_row * Tiles::kWeightStride, Tiles::kWeightStride);
    __syncwarp();
    multiply<Tiles::kKeys>(sums, weights + warp_row * Tiles::kWeightStride, Tiles::kWeightStride,
                           values, kStride);
  }

  for (int half = 0; half < 2; ++half) {
    const float total = sum_of_four_lanes(rows[half].total);
    const float inverse = 1.0f / total;
    CHASKI_UNROLL
    for (int column = 0; column < kColumns / 8; ++column) {
      sums.at[column][2 * half] *= inverse;
      sums.at[column][2 * half + 1] *= inverse;
    }
    const int row = warp_row + Scores::row_of(2 * half);
    if (log_sum_exp != nullptr && row < num_rows && threadIdx.x % 4 == 0)
      log_sum_exp[operands.statistic_offset(sequence, head, first_query + row)] =
          rows[half].maximum + logf(total);
  }
  // The queries are needed no more: their tile takes the results, each warp in the rows that only
  // it has read.
  sums.store(1.0f, queries + warp_row * kStride, kStride);
  __syncthreads();
  store_tile(queries, kColumns, out + operands.out_offset(sequence, head, first_query),
             operands.out_stride(), num_rows, operands.head_dim, operands.wide);
}

}  // namespace

template <typename T>
void run_attention_forward(Device& device, const AttentionOperands<T>& operands, T* out,
                           float* log_sum_exp) {
  with_tile_columns(operands.head_dim, [&](auto columns) {
    using Tiles = ForwardTiles<T, columns.value>;
    const std::int64_t tiles =
        divide_up(operands.num_queries, static_cast<std::int64_t>(Tiles::kQueries));
    launch(device, "attention_forward",
           {grid_of(tiles * operands.batch * operands.num_heads), Tiles::kThreads,
            Tiles::kSharedBytes},
           forward_kernel<T, columns.value>, operands, out, log_sum_exp);
  });
}
template void run_attention_forward(Device&, const AttentionOperands<float>&, float*, float*);
template void run_attention_forward(Device&, const AttentionOperands<bf16>&, bf16*, float*);

void tiled_attention_forward(const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& positions, const Tensor& out,
                             const Tensor& log_sum_exp) {
  with_element_type("attention_forward", qkv, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    run_attention_forward(qkv.device(), fused_operands<T>(shape, qkv, positions), elements<T>(out),
                          log_sum_exp.f32());
  });
}

}  // namespace chaski::cuda
