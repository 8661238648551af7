#include <omp.h>

#include "kernels/attention/tiles.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// Keys and values of one head, packed once for all of its queries.
struct PackedHead {
  float* keys;    // panels, see pack_transposed
  float* values;  // [keys rounded up to tiles, padded head_dim]
};

// The running softmax of a tile of queries.
struct QueryTile {
  float* queries;  // [kTile, padded head_dim], scaled
  float* scores;   // [kTile, kTile], then weights
  float* sums;     // [kTile, padded head_dim]: of weights · values
  float* maxima;   // [kTile]
  float* totals;   // [kTile]: of the weights
};

// What a thread does at a time: some query tiles of the heads that share a key-value head.
struct Task {
  std::int64_t batch;
  std::int64_t kv_head;
  std::int64_t first_tile;
  std::int64_t end_tile;
};

std::int64_t scratch_floats(const AttentionProblem& problem) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t keys = round_up(num_keys(problem), kTile);
  return 2 * keys * width + 2 * kTile * width + kTile * kTile + 2 * kTile;
}

// Scores of keys outside [begin, end) of the tile become -inf, whatever they were.
void hide_keys(float* scores, std::int64_t begin, std::int64_t end) {
  const auto first = static_cast<std::int32_t>(begin);
  const auto last = static_cast<std::int32_t>(end);
#pragma omp simd
  for (std::int32_t i = 0; i < kTile; ++i)
    scores[i] = i >= first && i < last ? scores[i] : kMinusInfinity;
}

// Turns the scores of row `row` into weights e^(score - maximum) for keys [begin, end) of the tile,
// zeros elsewhere, and rescales what was summed with the old maximum.
void softmax_row(QueryTile& tile, std::int64_t row, std::int64_t begin, std::int64_t end,
                 std::int64_t width) {
  float* scores = tile.scores + row * kTile;
  if (begin >= end) {
    zero(scores, kTile);
    return;
  }
  // Whole rows of fixed length: partial vectors would cost more than the hidden scores.
  if (end - begin < kTile) hide_keys(scores, begin, end);
  const float old_maximum = tile.maxima[row];
  float maximum = old_maximum;
#pragma omp simd reduction(max : maximum)
  for (std::int64_t i = 0; i < kTile; ++i) maximum = scores[i] > maximum ? scores[i] : maximum;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (std::int64_t i = 0; i < kTile; ++i) {
    const float weight = exp_nonpositive(scores[i] - maximum);
    scores[i] = weight;
    total += weight;
  }
  if (maximum > old_maximum) {
    const float factor = exp_nonpositive(old_maximum - maximum);
    float* sums = tile.sums + row * width;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) sums[i] *= factor;
    tile.totals[row] *= factor;
    tile.maxima[row] = maximum;
  }
  tile.totals[row] += total;
}

void attend_tile(const AttentionProblem& problem, const Task& task, std::int64_t head,
                 std::int64_t first_query, const PackedHead& packed, QueryTile& tile) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t rows = min_of(kTile, problem.num_queries - first_query);
  const std::int64_t token = task.batch * problem.num_queries + first_query;
  pack_rows(problem.queries + token * problem.query_stride + head * problem.head_dim,
            problem.query_stride, rows, problem.head_dim, problem.scale, tile.queries, kTile,
            width);
  zero(tile.sums, kTile * width);
  for (std::int64_t row = 0; row < kTile; ++row) {
    tile.maxima[row] = kMinusInfinity;
    tile.totals[row] = 0.0f;
  }
  std::int64_t first_keys[kTile];
  std::int64_t earliest = num_keys(problem);
  for (std::int64_t row = 0; row < rows; ++row) {
    first_keys[row] = first_key(problem, task.batch, first_query + row);
    earliest = min_of(earliest, first_keys[row]);
  }
  const std::int64_t last_key = problem.past + first_query + rows - 1;
  for (std::int64_t key = earliest / kTile * kTile; key <= last_key; key += kTile) {
    const std::int64_t diagonal = problem.past + first_query - key;
    multiply_scores(tile.queries, width, packed.keys + key * problem.head_dim, problem.head_dim,
                    rows, diagonal, tile.scores);
    for (std::int64_t row = 0; row < rows; ++row)
      softmax_row(tile, row, first_visible(first_keys[row], key), visible_keys(diagonal + row),
                  width);
    add_weighted(tile.scores, packed.values + key * width, tile.sums, width, rows, diagonal);
  }
}

void write_tile(const AttentionProblem& problem, const Task& task, std::int64_t head,
                std::int64_t first_query, const QueryTile& tile, float* out, float* log_sum_exp) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t rows = min_of(kTile, problem.num_queries - first_query);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t token = task.batch * problem.num_queries + first_query + row;
    float* target = out + (token * problem.num_heads + head) * problem.head_dim;
    const float* sums = tile.sums + row * width;
    const float factor = 1.0f / tile.totals[row];
#pragma omp simd
    for (std::int64_t i = 0; i < problem.head_dim; ++i) target[i] = sums[i] * factor;
    if (log_sum_exp == nullptr) continue;
    log_sum_exp[(task.batch * problem.num_heads + head) * problem.num_queries + first_query + row] =
        tile.maxima[row] + __builtin_logf(tile.totals[row]);
  }
}

void run_task(const AttentionProblem& problem, const Task& task, float* out, float* log_sum_exp,
              float* memory) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t keys = min_of(num_keys(problem), problem.past + task.end_tile * kTile);
  const std::int64_t padded_keys = round_up(keys, kTile);
  Scratch scratch(memory);
  const PackedHead packed = {scratch.take(padded_keys * problem.head_dim),
                             scratch.take(padded_keys * width)};
  QueryTile tile = {scratch.take(kTile * width), scratch.take(kTile * kTile),
                    scratch.take(kTile * width), scratch.take(kTile), scratch.take(kTile)};
  const std::int64_t offset =
      task.batch * num_keys(problem) * problem.kv_stride + task.kv_head * problem.head_dim;
  pack_transposed(problem.keys + offset, problem.kv_stride, keys, problem.head_dim, packed.keys);
  pack_rows(problem.values + offset, problem.kv_stride, keys, problem.head_dim, 1.0f, packed.values,
            padded_keys, width);
  const std::int64_t group = problem.num_heads / problem.num_kv_heads;
  for (std::int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
    for (std::int64_t index = task.first_tile; index < task.end_tile; ++index) {
      attend_tile(problem, task, head, index * kTile, packed, tile);
      write_tile(problem, task, head, index * kTile, tile, out, log_sum_exp);
    }
  }
}

// Where there are few heads for the threads, the query tiles of a head are split too, although
// each part packs the keys again.
std::int64_t parts_of_head(const AttentionProblem& problem, int threads) {
  constexpr std::int64_t kTasksPerThread = 4;
  const std::int64_t heads = problem.batch * problem.num_kv_heads;
  if (threads == 1 || heads >= kTasksPerThread * threads) return 1;
  return min_of(num_tiles(problem), (kTasksPerThread * threads + heads - 1) / heads);
}

void run(const AttentionProblem& problem, float* out, float* log_sum_exp, float* scratch,
         int threads) {
  const std::int64_t parts = parts_of_head(problem, threads);
  const std::int64_t heads = problem.batch * problem.num_kv_heads;
  const std::int64_t tiles = num_tiles(problem);
  const std::int64_t thread_floats = scratch_floats(problem);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (std::int64_t index = 0; index < heads * parts; ++index) {
    // The last part sees the most keys: it goes first.
    const std::int64_t part = parts - 1 - index / heads;
    const std::int64_t head = index % heads;
    const Task task = {head / problem.num_kv_heads, head % problem.num_kv_heads,
                       part * tiles / parts, (part + 1) * tiles / parts};
    run_task(problem, task, out, log_sum_exp, scratch + omp_get_thread_num() * thread_floats);
  }
}

}  // namespace

const AttentionForwardKernel attention_forward_kernel = {scratch_floats, run};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
