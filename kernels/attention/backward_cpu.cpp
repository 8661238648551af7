#include <omp.h>

#include "kernels/attention/tiles.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// Keys and values of one head in the two layouts that the products need, and their gradients.
struct PackedHead {
  float* key_panels;    // see pack_transposed
  float* value_panels;  // the same
  float* keys;          // [keys rounded up to tiles, padded head_dim], as the next two
  float* dkeys;
  float* dvalues;
};

struct QueryTile {
  float* queries;  // [kTile, padded head_dim], scaled
  float* dout;     // the same shape
  float* dqueries;
  float* weights;   // [kTile, kTile]: scores, then the softmax
  float* dscores;   // [kTile, kTile]: gradients of the weights, then of the scores
  float* row_dots;  // [kTile]: dout · out
};

struct Gradients {
  const float* out;
  const float* log_sum_exp;
  const float* dout;
  float* dqueries;
  float* dkeys;
  float* dvalues;
};

std::int64_t scratch_floats(const AttentionProblem& problem) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t keys = round_up(num_keys(problem), kTile);
  return 5 * keys * width + 3 * kTile * width + 2 * kTile * kTile + kTile;
}

// weights = e^(score - log_sum_exp) and dscores = weights · (dweights - row_dot) for keys
// [begin, end) of the tile, zeros elsewhere.
void softmax_gradient_row(float* weights, float* dscores, float log_sum_exp, float row_dot,
                          std::int64_t begin, std::int64_t end) {
  if (end - begin == kTile) {
#pragma omp simd
    for (std::int64_t i = 0; i < kTile; ++i) {
      const float weight = exp_nonpositive(weights[i] - log_sum_exp);
      weights[i] = weight;
      dscores[i] = weight * (dscores[i] - row_dot);
    }
    return;
  }
  // Whole rows here too: partial vectors would cost more than the hidden keys.
  const auto first = static_cast<std::int32_t>(begin);
  const auto last = static_cast<std::int32_t>(end);
#pragma omp simd
  for (std::int32_t i = 0; i < kTile; ++i) {
    const bool visible = i >= first && i < last;
    const float weight = exp_nonpositive(weights[i] - log_sum_exp);
    const float dscore = weight * (dscores[i] - row_dot);
    weights[i] = visible ? weight : 0.0f;
    dscores[i] = visible ? dscore : 0.0f;
  }
}

void dot_rows(const float* a, const float* b, std::int64_t stride, std::int64_t rows,
              std::int64_t cols, float* dots) {
  for (std::int64_t row = 0; row < rows; ++row) {
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t i = 0; i < cols; ++i) dot += a[row * stride + i] * b[row * stride + i];
    dots[row] = dot;
  }
}

void store_rows(const float* from, std::int64_t width, std::int64_t rows, std::int64_t cols,
                float factor, float* to, std::int64_t stride) {
  for (std::int64_t row = 0; row < rows; ++row) {
#pragma omp simd
    for (std::int64_t i = 0; i < cols; ++i) to[row * stride + i] = factor * from[row * width + i];
  }
}

void backward_tile(const AttentionProblem& problem, const Gradients& gradients, std::int64_t batch,
                   std::int64_t head, std::int64_t first_query, const PackedHead& packed,
                   QueryTile& tile) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t depth = problem.head_dim;
  const std::int64_t rows = min_of(kTile, problem.num_queries - first_query);
  const std::int64_t token = batch * problem.num_queries + first_query;
  const std::int64_t query_offset = token * problem.query_stride + head * depth;
  const std::int64_t out_stride = problem.num_heads * depth;
  const std::int64_t out_offset = token * out_stride + head * depth;
  pack_rows(problem.queries + query_offset, problem.query_stride, rows, depth, problem.scale,
            tile.queries, kTile, width);
  pack_rows(gradients.dout + out_offset, out_stride, rows, depth, 1.0f, tile.dout, kTile, width);
  dot_rows(gradients.dout + out_offset, gradients.out + out_offset, out_stride, rows, depth,
           tile.row_dots);
  zero(tile.dqueries, kTile * width);
  const float* log_sum_exp = gradients.log_sum_exp +
                             (batch * problem.num_heads + head) * problem.num_queries + first_query;

  std::int64_t first_keys[kTile];
  std::int64_t earliest = first_query;
  for (std::int64_t row = 0; row < rows; ++row) {
    first_keys[row] = first_key(problem, batch, first_query + row);
    earliest = min_of(earliest, first_keys[row]);
  }
  for (std::int64_t key = earliest / kTile * kTile; key <= first_query; key += kTile) {
    const std::int64_t diagonal = first_query - key;
    multiply_scores(tile.queries, width, packed.key_panels + key * depth, depth, rows, diagonal,
                    tile.weights);
    multiply_scores(tile.dout, width, packed.value_panels + key * depth, depth, rows, diagonal,
                    tile.dscores);
    for (std::int64_t row = 0; row < rows; ++row)
      softmax_gradient_row(tile.weights + row * kTile, tile.dscores + row * kTile, log_sum_exp[row],
                           tile.row_dots[row], first_visible(first_keys[row], key),
                           visible_keys(diagonal + row));
    add_transposed(tile.weights, tile.dout, packed.dvalues + key * width, width, rows, diagonal);
    add_transposed(tile.dscores, tile.queries, packed.dkeys + key * width, width, rows, diagonal);
    add_weighted(tile.dscores, packed.keys + key * width, tile.dqueries, width, rows, diagonal);
  }
  store_rows(tile.dqueries, width, rows, depth, problem.scale, gradients.dqueries + query_offset,
             problem.query_stride);
}

// All query heads of one key-value head, in order: the sums have one order on any number of
// threads.
void backward_head(const AttentionProblem& problem, const Gradients& gradients, std::int64_t batch,
                   std::int64_t kv_head, float* memory) {
  const std::int64_t width = padded_head_dim(problem);
  const std::int64_t depth = problem.head_dim;
  const std::int64_t keys = num_keys(problem);
  const std::int64_t padded_keys = round_up(keys, kTile);
  Scratch scratch(memory);
  const PackedHead packed = {scratch.take(padded_keys * depth), scratch.take(padded_keys * depth),
                             scratch.take(padded_keys * width), scratch.take(padded_keys * width),
                             scratch.take(padded_keys * width)};
  QueryTile tile = {scratch.take(kTile * width), scratch.take(kTile * width),
                    scratch.take(kTile * width), scratch.take(kTile * kTile),
                    scratch.take(kTile * kTile), scratch.take(kTile)};
  const std::int64_t offset = batch * keys * problem.kv_stride + kv_head * depth;
  pack_transposed(problem.keys + offset, problem.kv_stride, keys, depth, packed.key_panels);
  pack_transposed(problem.values + offset, problem.kv_stride, keys, depth, packed.value_panels);
  pack_rows(problem.keys + offset, problem.kv_stride, keys, depth, 1.0f, packed.keys, padded_keys,
            width);
  zero(packed.dkeys, padded_keys * width);
  zero(packed.dvalues, padded_keys * width);

  const std::int64_t group = problem.num_heads / problem.num_kv_heads;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t query = 0; query < problem.num_queries; query += kTile)
      backward_tile(problem, gradients, batch, head, query, packed, tile);
  }
  store_rows(packed.dkeys, width, keys, depth, 1.0f, gradients.dkeys + offset, problem.kv_stride);
  store_rows(packed.dvalues, width, keys, depth, 1.0f, gradients.dvalues + offset,
             problem.kv_stride);
}

void run(const AttentionProblem& problem, const float* out, const float* log_sum_exp,
         const float* dout, float* dqueries, float* dkeys, float* dvalues, float* scratch,
         int threads) {
  const Gradients gradients = {out, log_sum_exp, dout, dqueries, dkeys, dvalues};
  const std::int64_t heads = problem.batch * problem.num_kv_heads;
  const std::int64_t thread_floats = scratch_floats(problem);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (std::int64_t head = 0; head < heads; ++head)
    backward_head(problem, gradients, head / problem.num_kv_heads, head % problem.num_kv_heads,
                  scratch + omp_get_thread_num() * thread_floats);
}

}  // namespace

const AttentionBackwardKernel attention_backward_kernel = {scratch_floats, run};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
