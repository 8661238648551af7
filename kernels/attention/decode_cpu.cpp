#include "kernels/attention/tiles.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// Keys that one task reads; fixed, so that sums do not depend on the number of threads.
constexpr std::int64_t kChunk = 64;

// A chunk's share of one query head's softmax: maximum, total, then weighted values [head_dim].
constexpr std::int64_t kPartialHeader = 16;

std::int64_t num_chunks(const AttentionProblem& problem) {
  return (num_keys(problem) + kChunk - 1) / kChunk;
}
std::int64_t partial_floats(const AttentionProblem& problem) {
  return kPartialHeader + padded_head_dim(problem);
}
std::int64_t chunk_floats(const AttentionProblem& problem) {
  return problem.num_heads * (partial_floats(problem) + kChunk);
}
std::int64_t scratch_floats(const AttentionProblem& problem) {
  return num_chunks(problem) * chunk_floats(problem);
}

float dot(const float* a, const float* b, std::int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(const float* x, float factor, float* y, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

// Replaces the scores by e^(score - maximum) and starts the head's partial result.
void start_partial(float* scores, std::int64_t count, std::int64_t width, float* partial) {
  float maximum = kMinusInfinity;
#pragma omp simd reduction(max : maximum)
  for (std::int64_t i = 0; i < count; ++i) maximum = scores[i] > maximum ? scores[i] : maximum;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (std::int64_t i = 0; i < count; ++i) {
    scores[i] = exp_nonpositive(scores[i] - maximum);
    total += scores[i];
  }
  partial[0] = maximum;
  partial[1] = total;
  zero(partial + kPartialHeader, width);
}

// Keys [first, first + count) for all heads: rows of keys and values are read in order.
void attend_chunk(const AttentionProblem& problem, const float* query, std::int64_t first,
                  std::int64_t count, float* memory) {
  const std::int64_t depth = problem.head_dim;
  const std::int64_t group = problem.num_heads / problem.num_kv_heads;
  float* scores = memory;  // [num_heads, kChunk]
  float* partials = memory + problem.num_heads * kChunk;
  for (std::int64_t i = 0; i < count; ++i) {
    const float* keys = problem.keys + (first + i) * problem.kv_stride;
    for (std::int64_t head = 0; head < problem.num_heads; ++head)
      scores[head * kChunk + i] =
          problem.scale * dot(query + head * depth, keys + head / group * depth, depth);
  }
  for (std::int64_t head = 0; head < problem.num_heads; ++head)
    start_partial(scores + head * kChunk, count, padded_head_dim(problem),
                  partials + head * partial_floats(problem));
  for (std::int64_t i = 0; i < count; ++i) {
    const float* values = problem.values + (first + i) * problem.kv_stride;
    for (std::int64_t head = 0; head < problem.num_heads; ++head)
      add_scaled(values + head / group * depth, scores[head * kChunk + i],
                 partials + head * partial_floats(problem) + kPartialHeader, depth);
  }
}

void combine_head(const AttentionProblem& problem, std::int64_t chunks, std::int64_t head,
                  const float* memory, float* out) {
  const std::int64_t depth = problem.head_dim;
  const float* first = memory + problem.num_heads * kChunk + head * partial_floats(problem);
  float maximum = kMinusInfinity;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float candidate = first[chunk * chunk_floats(problem)];
    maximum = candidate > maximum ? candidate : maximum;
  }
  float total = 0.0f;
  for (std::int64_t i = 0; i < depth; ++i) out[i] = 0.0f;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* partial = first + chunk * chunk_floats(problem);
    const float factor = exp_nonpositive(partial[0] - maximum);
    total += factor * partial[1];
    add_scaled(partial + kPartialHeader, factor, out, depth);
  }
  const float inverse = 1.0f / total;
#pragma omp simd
  for (std::int64_t i = 0; i < depth; ++i) out[i] *= inverse;
}

void run(const AttentionProblem& problem, float* out, float* scratch, int threads) {
  const std::int64_t depth = problem.head_dim;
  for (std::int64_t row = 0; row < problem.num_queries; ++row) {
    const float* query = problem.queries + row * problem.query_stride;
    float* out_row = out + row * problem.num_heads * depth;
    const std::int64_t keys = problem.past + row + 1;
    const std::int64_t chunks = (keys + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(static_cast <int>(min_of(threads, chunks))) schedule(static)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
      attend_chunk(problem, query, chunk * kChunk, min_of(kChunk, keys - chunk * kChunk),
                   scratch + chunk * chunk_floats(problem));
    for (std::int64_t head = 0; head < problem.num_heads; ++head)
      combine_head(problem, chunks, head, scratch, out_row + head * depth);
  }
}

}  // namespace

const AttentionDecodeKernel attention_decode_kernel = {scratch_floats, run};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
