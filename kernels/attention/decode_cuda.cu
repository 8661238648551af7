#include <algorithm>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/tiles_cuda.h"

namespace chaski::cuda {
namespace {

// With fewer new tokens than this a tile of queries would be mostly empty.
constexpr std::int64_t kMinTiledQueries = 16;

constexpr int kThreads = 128;
constexpr int kRows = 16;       // of queries in a block, at most
constexpr int kKeys = 64;       // of a tile
constexpr int kMaxColumns = 2;  // of a thread: head_dim is at most 256
constexpr int kMaxParts = 64;   // of the cache

// A row is a query of one of the heads that share a key-value head. Rows of a block are
// first_row … first_row + kRows - 1 of these, heads of a token side by side.
template <typename T>
struct DecodeProblem {
  AttentionOperands<T> operands;
  int keys_of_part;  // a multiple of kKeys
  int num_parts;
  // [num_queries, num_heads, num_parts, 2 + head_dim]: maximum, total of the weights, and the sums
  // of weights · values of a part of the cache.
  float* partials;

  __host__ __device__ int group() const { return operands.num_heads / operands.num_kv_heads; }
  __host__ __device__ int num_rows() const { return operands.num_queries * group(); }
  __device__ float* partial(int query, int head, int part) const {
    const std::int64_t index =
        (static_cast<std::int64_t>(query) * operands.num_heads + head) * num_parts + part;
    return partials + index * (2 + operands.head_dim);
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    append_kernel(AttentionOperands<T> fused, std::int64_t past, T* key_cache, T* value_cache) {
  const int kv_size = fused.num_kv_heads * fused.head_dim;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = index / kv_size;
  if (row >= fused.num_queries) return;
  const std::int64_t column = index - row * kv_size;
  key_cache[past * kv_size + index] = fused.keys[row * fused.kv_stride + column];
  value_cache[past * kv_size + index] = fused.values[row * fused.kv_stride + column];
}

__host__ __device__ int padded_columns(int head_dim) {
  return (head_dim + 7) / 8 * 8;
}
template <typename T>
std::size_t shared_bytes(int head_dim) {
  const int columns = padded_columns(head_dim);
  return sizeof(float) * kRows * (columns + kKeys) + sizeof(T) * kKeys * tile_stride<T>(columns);
}

// A block's memory, laid out by its constructor.
template <typename T>
struct DecodeTile {
  float* queries;  // [kRows, columns], scaled
  float* weights;  // [kRows, kKeys]: scores first
  T* rows;         // [kKeys, stride]: keys, then values
  int columns;
  int stride;

  __device__ explicit DecodeTile(int head_dim)
      : columns(padded_columns(head_dim)), stride(tile_stride<T>(columns)) {
    queries = dynamic_shared<float>();
    weights = queries + kRows * columns;
    rows = reinterpret_cast<T*>(weights + kRows * kKeys);
  }
};

template <typename T>
__device__ void load_queries(const DecodeProblem<T>& problem, const DecodeTile<T>& tile,
                             int kv_head, int first_row, int num_rows) {
  const AttentionOperands<T>& operands = problem.operands;
  const int group = problem.group();
  for (int i = threadIdx.x; i < kRows * tile.columns; i += kThreads) {
    const int row = i / tile.columns;
    const int column = i - row * tile.columns;
    float value = 0.0f;
    if (row < num_rows && column < operands.head_dim) {
      const int query = (first_row + row) / group;
      const int head = kv_head * group + (first_row + row) % group;
      value = operands.scale *
              to_float(operands.queries[operands.query_offset(0, head, query) + column]);
    }
    tile.queries[i] = value;
  }
}

// Each thread takes one key and half of the rows. Rows that do not exist get no score.
template <typename T>
__device__ void compute_scores(const DecodeProblem<T>& problem, const DecodeTile<T>& tile,
                               int first_key, int first_row, int num_rows) {
  static_assert(kThreads == 2 * kKeys);
  constexpr int kShare = kRows / 2;
  const int index = threadIdx.x % kKeys;
  const int begin = static_cast<int>(threadIdx.x) / kKeys * kShare;
  const int count = min(kShare, num_rows - begin);
  if (count <= 0) return;
  const T* key = tile.rows + index * tile.stride;
  float scores[kShare] = {};
  for (int k = 0; k < tile.columns; k += 4) {
    const Four<T> x = *reinterpret_cast<const Four<T>*>(key + k);
    CHASKI_UNROLL
    for (int row = 0; row < kShare; ++row) {
      if (row >= count) break;
      const auto& y =
          *reinterpret_cast<const Four<float>*>(tile.queries + (begin + row) * tile.columns + k);
      CHASKI_UNROLL
      for (int i = 0; i < 4; ++i) scores[row] = fmaf(to_float(x.at[i]), y.at[i], scores[row]);
    }
  }
  CHASKI_UNROLL
  for (int row = 0; row < kShare; ++row) {
    if (row >= count) break;
    const int position = problem.operands.past + (first_row + begin + row) / problem.group();
    tile.weights[(begin + row) * kKeys + index] =
        first_key + index <= position ? scores[row] : -INFINITY;
  }
}

// The running softmax of a block's rows.
struct RowStates {
  float maximum[kRows];
  float total[kRows];
  float factor[kRows];  // what sums with the old maximum are to be scaled by
};

// A warp for each row: scores become weights e^(score - maximum).
__device__ void update_softmax(float* weights, int num_rows, RowStates& states) {
  const int lane = threadIdx.x % kWarpSize;
  for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < num_rows;
       row += kThreads / kWarpSize) {
    float* scores = weights + row * kKeys;
    const float old_maximum = states.maximum[row];
    const float maximum =
        fmaxf(old_maximum, warp_max(fmaxf(scores[lane], scores[lane + kWarpSize])));
    const float subtracted = finite_maximum(maximum);
    scores[lane] = expf(scores[lane] - subtracted);
    scores[lane + kWarpSize] = expf(scores[lane + kWarpSize] - subtracted);
    const float total = warp_sum(scores[lane] + scores[lane + kWarpSize]);
    if (lane != 0) continue;
    const float factor = expf(old_maximum - subtracted);
    states.factor[row] = factor;
    states.total[row] = factor * states.total[row] + total;
    states.maximum[row] = maximum;
  }
}

// Rescales the sums of one column, then adds weights · values.
template <typename T>
__device__ __forceinline__ void add_values(const DecodeTile<T>& tile, const RowStates& states,
                                           int num_rows, int column, int c,
                                           float (&sums)[kRows][kMaxColumns]) {
  CHASKI_UNROLL
  for (int row = 0; row < kRows; ++row) {
    if (row < num_rows) sums[row][c] *= states.factor[row];
  }
  for (int key = 0; key < kKeys; key += 4) {
    float values[4];
    CHASKI_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = to_float(tile.rows[(key + i) * tile.stride + column]);
    CHASKI_UNROLL
    for (int row = 0; row < kRows; ++row) {
      if (row >= num_rows) break;
      const auto& weights = *reinterpret_cast<const Four<float>*>(tile.weights + row * kKeys + key);
      CHASKI_UNROLL
      for (int i = 0; i < 4; ++i) sums[row][c] = fmaf(weights.at[i], values[i], sums[row][c]);
    }
  }
}

// A block reads one part of the cache of one key-value head, for up to kRows rows. Aiming for more
// blocks on a multiprocessor than four, the compiler spills registers on some architectures.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) part_kernel(DecodeProblem<T> problem) {
  const AttentionOperands<T>& operands = problem.operands;
  __shared__ RowStates states;
  const DecodeTile<T> tile(operands.head_dim);
  const int part = blockIdx.x;
  const int kv_head = blockIdx.y;
  const int first_row = static_cast<int>(blockIdx.z) * kRows;
  const int num_rows = min(kRows, problem.num_rows() - first_row);
  load_queries(problem, tile, kv_head, first_row, num_rows);
  if (threadIdx.x < kRows) {
    states.maximum[threadIdx.x] = -INFINITY;
    states.total[threadIdx.x] = 0.0f;
  }
  float sums[kRows][kMaxColumns] = {};
  const int begin = part * problem.keys_of_part;
  const int end = min(begin + problem.keys_of_part, operands.num_keys());
  for (int first_key = begin; first_key < end; first_key += kKeys) {
    const int num_keys = min(kKeys, end - first_key);
    const std::int64_t offset = operands.kv_offset(0, kv_head, first_key);
    __syncthreads();  // the values of the last round have been read
    load_tile(operands.keys + offset, operands.kv_stride, num_keys, operands.head_dim,
              operands.wide, tile.rows, kKeys, tile.columns);
    __syncthreads();
    compute_scores(problem, tile, first_key, first_row, num_rows);
    __syncthreads();
    load_tile(operands.values + offset, operands.kv_stride, num_keys, operands.head_dim,
              operands.wide, tile.rows, kKeys, tile.columns);
    update_softmax(tile.weights, num_rows, states);
    __syncthreads();
    CHASKI_UNROLL
    for (int c = 0; c < kMaxColumns; ++c) {
      const int column = threadIdx.x + c * kThreads;
      if (column < operands.head_dim) add_values(tile, states, num_rows, column, c, sums);
    }
  }
  __syncthreads();
  const int group = problem.group();
  CHASKI_UNROLL
  for (int row = 0; row < kRows; ++row) {
    if (row >= num_rows) break;
    float* partial = problem.partial((first_row + row) / group,
                                     kv_head * group + (first_row + row) % group, part);
    CHASKI_UNROLL
    for (int c = 0; c < kMaxColumns; ++c) {
      const int column = threadIdx.x + c * kThreads;
      if (column < operands.head_dim) partial[2 + column] = sums[row][c];
    }
    if (threadIdx.x == 0) {
      partial[0] = states.maximum[row];
      partial[1] = states.total[row];
    }
  }
}

// A block is a query of one head.
template <typename T>
__global__ void __launch_bounds__(kThreads) combine_kernel(DecodeProblem<T> problem, T* out) {
  const AttentionOperands<T>& operands = problem.operands;
  const int head = static_cast<int>(blockIdx.x) % operands.num_heads;
  const int query = static_cast<int>(blockIdx.x) / operands.num_heads;
  const float* partials = problem.partial(query, head, 0);
  const int stride = 2 + operands.head_dim;
  float maximum = -INFINITY;
  for (int part = 0; part < problem.num_parts; ++part)
    maximum = fmaxf(maximum, partials[part * stride]);
  maximum = finite_maximum(maximum);
  for (int column = threadIdx.x; column < operands.head_dim; column += kThreads) {
    float total = 0.0f;
    float sum = 0.0f;
    for (int part = 0; part < problem.num_parts; ++part) {
      const float* partial = partials + part * stride;
      const float factor = expf(partial[0] - maximum);
      total = fmaf(factor, partial[1], total);
      sum = fmaf(factor, partial[2 + column], sum);
    }
    out[operands.out_offset(0, head, query) + column] = from_float<T>(sum / total);
  }
}

// Few queries: bound by reading the cache, so all of the GPU shall read it.
template <typename T>
void run_decode(Device& device, const AttentionOperands<T>& operands, std::int64_t capacity,
                T* out) {
  DecodeProblem<T> problem = {operands, 0, 0, nullptr};
  const int row_blocks = (problem.num_rows() + kRows - 1) / kRows;
  const int wanted = 2 * context_of(device).num_multiprocessors();
  const int tiles = (operands.num_keys() + kKeys - 1) / kKeys;
  const int parts =
      std::clamp(wanted / (operands.num_kv_heads * row_blocks), 1, std::min(tiles, kMaxParts));
  problem.keys_of_part = (tiles + parts - 1) / parts * kKeys;
  problem.num_parts = (operands.num_keys() + problem.keys_of_part - 1) / problem.keys_of_part;
  // As much as the full cache may need: so that it is allocated once.
  const std::int64_t most_parts = std::min<std::int64_t>(divide_up(capacity, kKeys), kMaxParts);
  const Shape partials = {operands.num_queries, operands.num_heads, most_parts,
                          2 + operands.head_dim};
  Workspace::Frame frame(device);
  problem.partials = frame.f32(partials).f32();
  launch(device, "attention_decode",
         {dim3(static_cast<unsigned>(problem.num_parts),
               static_cast<unsigned>(operands.num_kv_heads), static_cast<unsigned>(row_blocks)),
          kThreads, shared_bytes<T>(operands.head_dim)},
         part_kernel<T>, problem);
  launch(device, "attention_decode, parts",
         {grid_of(static_cast<std::int64_t>(operands.num_queries) * operands.num_heads), kThreads},
         combine_kernel<T>, problem, out);
}

}  // namespace

void attention_decode(const AttentionShape& shape, const Tensor& qkv, std::int64_t past,
                      const Tensor& key_cache, const Tensor& value_cache, const Tensor& out) {
  if (shape.num_tokens() == 0) return;
  Device& device = qkv.device();
  with_element_type("attention_decode", qkv, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    AttentionOperands<T> operands = fused_operands<T>(shape, qkv, Tensor());
    launch(device, "attention_decode, caches",
           {grid_of(divide_up(shape.num_tokens() * shape.kv_size(), kThreads)), kThreads},
           append_kernel<T>, operands, past, elements<T>(key_cache), elements<T>(value_cache));
    operands.past = static_cast<int>(past);
    operands.keys = elements<T>(key_cache);
    operands.values = elements<T>(value_cache);
    operands.kv_stride = shape.kv_size();
    if (shape.sequence_length >= kMinTiledQueries) {
      run_attention_forward(device, operands, elements<T>(out), nullptr);
    } else {
      run_decode(device, operands, key_cache.shape().num_rows(), elements<T>(out));
    }
  });
}

}  // namespace chaski::cuda
