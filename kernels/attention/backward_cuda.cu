#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/tiles_cuda.h"

// FlashAttention-2's backward pass (arXiv 2307.08691, Alg. 2), in two kernels that each recompute
// the scores: one goes through the queries of a tile of keys, one through the keys of a tile of
// queries. So every gradient is summed by one block in one order, without atomics.

namespace chaski::cuda {
namespace {

// A block keeps a tile of kRows (keys in one kernel, queries in the other) and goes through tiles
// of kOthers. A warp takes 16 rows and one of kColumnWarps shares of the columns.
template <typename T, int kColumns>
struct BackwardTiles {
  static constexpr bool kIsFloat = std::is_same_v<T, float>;
  static constexpr int kRows = kColumns == 256 ? (kIsFloat ? 16 : 32) : (kIsFloat ? 32 : 64);
  static constexpr int kOthers = kRows;
  static constexpr int kColumnWarps = kColumns == 256 && !kIsFloat ? 4 : 2;
  static constexpr int kThreads = kRows / 16 * kColumnWarps * kWarpSize;
  static constexpr int kStride = tile_stride<T>(kColumns);
  static constexpr int kScoreStride = tile_stride<T>(kOthers);
  static constexpr int kScoreColumns = kOthers / kColumnWarps;      // of a warp
  static constexpr int kGradientColumns = kColumns / kColumnWarps;  // of a warp
  static constexpr std::size_t kSharedBytes =
      sizeof(T) * (2 * (kRows + kOthers) * kStride + 2 * kRows * kScoreStride);
  static_assert(kSharedBytes <= 98 * 1024);

  using Scores = Accumulator<kScoreColumns / 8>;
  using Gradients = Accumulator<kGradientColumns / 8>;
};

template <typename T>
struct Saved {
  const T* dout;
  const float* log_sum_exp;
  const float* row_dots;  // dout · out, in the layout of log_sum_exp
};

// A warp for each query of each head.
constexpr int kDotThreads = 128;
template <typename T>
__global__ void __launch_bounds__(kDotThreads)
    row_dots_kernel(AttentionOperands<T> operands, const T* out, const T* dout, float* row_dots) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kDotThreads + threadIdx.x) / kWarpSize;
  const int head = static_cast<int>(index % operands.num_heads);
  const std::int64_t token = index / operands.num_heads;
  const auto sequence = static_cast<int>(token / operands.num_queries);
  const auto query = static_cast<int>(token % operands.num_queries);
  if (sequence >= operands.batch) return;
  const std::int64_t offset = operands.out_offset(sequence, head, query);
  float dot = 0.0f;
  const int lane = threadIdx.x % kWarpSize;
  for (int i = lane; i < operands.head_dim; i += kWarpSize)
    dot = fmaf(to_float(dout[offset + i]), to_float(out[offset + i]), dot);
  dot = warp_sum(dot);
  if (lane == 0) row_dots[operands.statistic_offset(sequence, head, query)] = dot;
}

struct ScoreGradient {
  float weight;
  float dscore;
};

// From a score and the gradient of its weight. Hidden ones are zeros, whatever they were.
template <typename T>
__device__ ScoreGradient score_gradient(float score, float dweight, bool visible, float log_sum_exp,
                                        float row_dot) {
  const float weight = exponential<T>(score - log_sum_exp);
  return visible ? ScoreGradient{weight, weight * (dweight - row_dot)} : ScoreGradient{0.0f, 0.0f};
}

// What a tile of queries needs besides rows.
template <int kQueries>
struct QueryStatistics {
  float log_sum_exp[kQueries];
  float row_dot[kQueries];
  int first_key[kQueries];

  // By the block's first kQueries threads. Whether this thread's query sees a key up to `last_key`.
  template <typename T>
  __device__ bool load(const AttentionOperands<T>& operands, const Saved<T>& saved, int sequence,
                       int head, int first_query, int last_key) {
    const int row = threadIdx.x;
    if (row >= kQueries) return false;
    const int query = first_query + row;
    const bool exists = query < operands.num_queries;
    const std::int64_t at = operands.statistic_offset(sequence, head, query);
    log_sum_exp[row] = exists ? saved.log_sum_exp[at] : 0.0f;
    row_dot[row] = exists ? saved.row_dots[at] : 0.0f;
    first_key[row] = operands.first_key(sequence, query);
    return first_key[row] <= last_key;
  }
};

// A tile of keys and a tile of queries in shared memory: one of them gives the rows of the scores,
// the other the columns.
template <typename T>
struct ScoreTiles {
  const T* rows;         // keys, or queries
  const T* row_factors;  // values, or dout
  const T* columns;
  const T* column_factors;
  int first_row;  // in the sequence
  int first_column;
};

// The gradients of the scores, and their weights where wanted (not null), of a warp's share of the
// tiles.
template <typename T, int kColumns, bool kRowsAreQueries>
__device__ void fill_dscores(const ScoreTiles<T>& tiles, float scale,
                             const QueryStatistics<BackwardTiles<T, kColumns>::kRows>& statistics,
                             T* weights, T* dscores) {
  using Tiles = BackwardTiles<T, kColumns>;
  constexpr int kStride = Tiles::kStride;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warp_row = warp / Tiles::kColumnWarps * 16;
  const int warp_column = warp % Tiles::kColumnWarps * Tiles::kScoreColumns;
  typename Tiles::Scores scores;
  typename Tiles::Scores dweights;
  multiply_transposed<kColumns>(scores, tiles.rows + warp_row * kStride, kStride,
                                tiles.columns + warp_column * kStride, kStride);
  multiply_transposed<kColumns>(dweights, tiles.row_factors + warp_row * kStride, kStride,
                                tiles.column_factors + warp_column * kStride, kStride);
  CHASKI_UNROLL
  for (int tile = 0; tile < Tiles::kScoreColumns / 8; ++tile) {
    CHASKI_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = warp_row + Tiles::Scores::row_of(i);
      const int column = warp_column + Tiles::Scores::column_of(tile, i);
      const int at = kRowsAreQueries ? row : column;  // of the query in its tile
      const int query = at + (kRowsAreQueries ? tiles.first_row : tiles.first_column);
      const int key = kRowsAreQueries ? tiles.first_column + column : tiles.first_row + row;
      const bool visible = key >= statistics.first_key[at] && key <= query;
      const ScoreGradient gradient =
          score_gradient<T>(scores.at[tile][i] * scale, dweights.at[tile][i], visible,
                            statistics.log_sum_exp[at], statistics.row_dot[at]);
      const int element = row * Tiles::kScoreStride + column;
      if (weights != nullptr) weights[element] = from_float<T>(gradient.weight);
      dscores[element] = from_float<T>(gradient.dscore);
    }
  }
}

// A block is a tile of keys of one key-value head, and goes through all query heads that share it.
template <typename T, int kColumns>
__global__ void __launch_bounds__(BackwardTiles<T, kColumns>::kThreads)
    dkeys_kernel(AttentionOperands<T> operands, Saved<T> saved, T* dkeys_out, T* dvalues_out) {
  using Tiles = BackwardTiles<T, kColumns>;
  constexpr int kStride = Tiles::kStride;
  constexpr int kScoreStride = Tiles::kScoreStride;
  __shared__ QueryStatistics<Tiles::kRows> statistics;
  T* keys = dynamic_shared<T>();
  T* values = keys + Tiles::kRows * kStride;
  T* queries = values + Tiles::kRows * kStride;
  T* dout = queries + Tiles::kOthers * kStride;
  T* weights = dout + Tiles::kOthers * kStride;
  T* dscores = weights + Tiles::kRows * kScoreStride;

  // The first tile is seen by the most queries: it goes first.
  const int kv_heads = operands.num_kv_heads * operands.batch;
  const int first_key = static_cast<int>(blockIdx.x) / kv_heads * Tiles::kRows;
  const int sequence = static_cast<int>(blockIdx.x) % kv_heads / operands.num_kv_heads;
  const int kv_head = static_cast<int>(blockIdx.x) % operands.num_kv_heads;
  const int num_keys = min(Tiles::kRows, operands.num_keys() - first_key);
  const int last_key = first_key + num_keys - 1;
  const std::int64_t kv_offset = operands.kv_offset(sequence, kv_head, first_key);
  load_tile(operands.keys + kv_offset, operands.kv_stride, num_keys, operands.head_dim,
            operands.wide, keys, Tiles::kRows, kColumns);
  load_tile(operands.values + kv_offset, operands.kv_stride, num_keys, operands.head_dim,
            operands.wide, values, Tiles::kRows, kColumns);

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warp_row = warp / Tiles::kColumnWarps * 16;
  const int gradient_column = warp % Tiles::kColumnWarps * Tiles::kGradientColumns;
  typename Tiles::Gradients dkeys;
  typename Tiles::Gradients dvalues;
  const int group = operands.num_heads / operands.num_kv_heads;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int first_query = first_key / Tiles::kOthers * Tiles::kOthers;
         first_query < operands.num_queries; first_query += Tiles::kOthers) {
      const bool sees = statistics.load(operands, saved, sequence, head, first_query, last_key);
      // This barrier too: all threads have read the last round's tiles.
      if (!__syncthreads_or(sees)) continue;
      const int num_queries = min(Tiles::kOthers, operands.num_queries - first_query);
      load_tile(operands.queries + operands.query_offset(sequence, head, first_query),
                operands.query_stride, num_queries, operands.head_dim, operands.wide, queries,
                Tiles::kOthers, kColumns);
      load_tile(saved.dout + operands.out_offset(sequence, head, first_query),
                operands.out_stride(), num_queries, operands.head_dim, operands.wide, dout,
                Tiles::kOthers, kColumns);
      __syncthreads();
      fill_dscores<T, kColumns, false>({keys, values, queries, dout, first_key, first_query},
                                       operands.scale, statistics, weights, dscores);
      __syncthreads();
      multiply<Tiles::kOthers>(dvalues, weights + warp_row * kScoreStride, kScoreStride,
                               dout + gradient_column, kStride);
      multiply<Tiles::kOthers>(dkeys, dscores + warp_row * kScoreStride, kScoreStride,
                               queries + gradient_column, kStride);
    }
  }
  __syncthreads();
  dkeys.store(operands.scale, keys + warp_row * kStride + gradient_column, kStride);
  dvalues.store(1.0f, values + warp_row * kStride + gradient_column, kStride);
  __syncthreads();
  store_tile(keys, kColumns, dkeys_out + kv_offset, operands.kv_stride, num_keys, operands.head_dim,
             operands.wide);
  store_tile(values, kColumns, dvalues_out + kv_offset, operands.kv_stride, num_keys,
             operands.head_dim, operands.wide);
}

// A block is a tile of queries of one head.
template <typename T, int kColumns>
__global__ void __launch_bounds__(BackwardTiles<T, kColumns>::kThreads)
    dqueries_kernel(AttentionOperands<T> operands, Saved<T> saved, T* dqueries_out) {
  using Tiles = BackwardTiles<T, kColumns>;
  constexpr int kStride = Tiles::kStride;
  constexpr int kScoreStride = Tiles::kScoreStride;
  __shared__ QueryStatistics<Tiles::kRows> statistics;
  T* queries = dynamic_shared<T>();
  T* dout = queries + Tiles::kRows * kStride;
  T* keys = dout + Tiles::kRows * kStride;
  T* values = keys + Tiles::kOthers * kStride;
  T* dscores = values + Tiles::kOthers * kStride;

  // The last tile sees the most keys: it goes first.
  const int heads = operands.num_heads * operands.batch;
  const int last_tile = (operands.num_queries - 1) / Tiles::kRows;
  const int first_query = (last_tile - static_cast<int>(blockIdx.x) / heads) * Tiles::kRows;
  const int sequence = static_cast<int>(blockIdx.x) % heads / operands.num_heads;
  const int head = static_cast<int>(blockIdx.x) % operands.num_heads;
  const int kv_head = head / (operands.num_heads / operands.num_kv_heads);
  const int num_queries = min(Tiles::kRows, operands.num_queries - first_query);
  const std::int64_t query_offset = operands.query_offset(sequence, head, first_query);
  load_tile(operands.queries + query_offset, operands.query_stride, num_queries, operands.head_dim,
            operands.wide, queries, Tiles::kRows, kColumns);
  load_tile(saved.dout + operands.out_offset(sequence, head, first_query), operands.out_stride(),
            num_queries, operands.head_dim, operands.wide, dout, Tiles::kRows, kColumns);
  const bool sees = statistics.load(operands, saved, sequence, head, first_query, INT_MAX - 1);
  const int earliest =
      block_reduce<Tiles::kThreads>(sees ? statistics.first_key[threadIdx.x] : INT_MAX, INT_MAX,
                                    [](int a, int b) { return a < b ? a : b; });

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warp_row = warp / Tiles::kColumnWarps * 16;
  const int gradient_column = warp % Tiles::kColumnWarps * Tiles::kGradientColumns;
  typename Tiles::Gradients dqueries;
  for (int first_key = earliest / Tiles::kOthers * Tiles::kOthers;
       first_key < first_query + num_queries; first_key += Tiles::kOthers) {
    const int num_keys = min(Tiles::kOthers, operands.num_keys() - first_key);
    const std::int64_t kv_offset = operands.kv_offset(sequence, kv_head, first_key);
    __syncthreads();  // the tiles of the last round have been read
    load_tile(operands.keys + kv_offset, operands.kv_stride, num_keys, operands.head_dim,
              operands.wide, keys, Tiles::kOthers, kColumns);
    load_tile(operands.values + kv_offset, operands.kv_stride, num_keys, operands.head_dim,
              operands.wide, values, Tiles::kOthers, kColumns);
    __syncthreads();
    fill_dscores<T, kColumns, true>({queries, dout, keys, values, first_query, first_key},
                                    operands.scale, statistics, static_cast<T*>(nullptr), dscores);
    __syncthreads();
    multiply<Tiles::kOthers>(dqueries, dscores + warp_row * kScoreStride, kScoreStride,
                             keys + gradient_column, kStride);
  }
  __syncthreads();
  dqueries.store(operands.scale, queries + warp_row * kStride + gradient_column, kStride);
  __syncthreads();
  store_tile(queries, kColumns, dqueries_out + query_offset, operands.query_stride, num_queries,
             operands.head_dim, operands.wide);
}

template <typename T, int kColumns>
void run_backward(Device& device, const AttentionOperands<T>& operands, const Saved<T>& saved,
                  T* dqueries, T* dkeys, T* dvalues) {
  using Tiles = BackwardTiles<T, kColumns>;
  const std::int64_t tiles =
      divide_up(operands.num_queries, static_cast<std::int64_t>(Tiles::kRows));
  launch(device, "attention_backward, keys",
         {grid_of(tiles * operands.batch * operands.num_kv_heads), Tiles::kThreads,
          Tiles::kSharedBytes},
         dkeys_kernel<T, kColumns>, operands, saved, dkeys, dvalues);
  launch(
      device, "attention_backward, queries",
      {grid_of(tiles * operands.batch * operands.num_heads), Tiles::kThreads, Tiles::kSharedBytes},
      dqueries_kernel<T, kColumns>, operands, saved, dqueries);
}

}  // namespace

void tiled_attention_backward(const AttentionShape& shape, const Tensor& qkv,
                              const Tensor& positions, const Tensor& out, const Tensor& log_sum_exp,
                              const Tensor& dout, const Tensor& dqkv) {
  Device& device = qkv.device();
  Workspace::Frame frame(device);
  const std::int64_t rows = num_row_dots(shape);
  const Tensor row_dots = frame.f32({rows});
  with_element_type("attention_backward", qkv, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const AttentionOperands<T> operands = fused_operands<T>(shape, qkv, positions);
    launch(device, "attention_backward, dot products",
           {grid_of(divide_up(rows * kWarpSize, kDotThreads)), kDotThreads}, row_dots_kernel<T>,
           operands, elements<T>(out), elements<T>(dout), row_dots.f32());
    const Saved<T> saved = {elements<T>(dout), log_sum_exp.f32(), row_dots.f32()};
    T* dqueries = elements<T>(dqkv);
    T* dkeys = dqueries + shape.query_size();
    with_tile_columns(shape.head_dim, [&](auto columns) {
      run_backward<T, columns.value>(device, operands, saved, dqueries, dkeys,
                                     dkeys + shape.kv_size());
    });
  });
}

}  // namespace chaski::cuda
