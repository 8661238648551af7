#include "kernels/loss/cross_entropy_cpu.h"

#include "kernels/elementwise/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// A row is worked on in blocks that stay in the first-level cache while their maximum is found and
// their exponentials are taken, each relative to its own block's maximum. So a row comes from
// memory once and each exponential is computed once; what is left afterwards is one factor per
// block.
constexpr std::int64_t kMinBlock = 2048;
constexpr std::int64_t kMaxBlocks = 128;

struct BlockSum {
  float maximum;  // may be -inf, then sum is 0 (or NaN)
  float sum;      // of exp(x - maximum)
};

// What is subtracted: -inf minus itself would be NaN. NaN and +inf reach the sum as NaN.
float reference_of(float maximum) {
  return maximum == -__builtin_inff() ? 0.0f : maximum;
}

float maximum_of(const float* x, std::int64_t count) {
  float maximum = -__builtin_inff();
#pragma omp simd reduction(max : maximum)
  for (std::int64_t i = 0; i < count; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  return maximum;
}

BlockSum sum_block(const float* x, std::int64_t count) {
  const float maximum = maximum_of(x, count);
  const float reference = reference_of(maximum);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += exp_nonpositive(x[i] - reference);
  return {maximum, sum};
}

// Leaves exp(x - maximum) in x.
BlockSum exponentiate_block(float* x, std::int64_t count) {
  const float maximum = maximum_of(x, count);
  const float reference = reference_of(maximum);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = exp_nonpositive(x[i] - reference);
    x[i] = value;
    sum += value;
  }
  return {maximum, sum};
}

struct Row {
  BlockSum blocks[kMaxBlocks];
  std::int64_t block_size;
  std::int64_t num_blocks;
  float maximum;
  double sum;  // of exp(x - maximum)

  explicit Row(std::int64_t vocab_size) {
    const std::int64_t least = (vocab_size + kMaxBlocks - 1) / kMaxBlocks;
    block_size = least > kMinBlock ? (least + 15) / 16 * 16 : kMinBlock;
    num_blocks = (vocab_size + block_size - 1) / block_size;
  }

  std::int64_t count(std::int64_t block, std::int64_t vocab_size) const {
    const std::int64_t left = vocab_size - block * block_size;
    return left < block_size ? left : block_size;
  }

  void combine() {
    maximum = -__builtin_inff();
    for (std::int64_t b = 0; b < num_blocks; ++b)
      maximum = blocks[b].maximum > maximum ? blocks[b].maximum : maximum;
    sum = 0.0;
    for (std::int64_t b = 0; b < num_blocks; ++b)
      sum += static_cast<double>(blocks[b].sum) * exp_of(blocks[b].maximum - maximum);
  }

  float loss(float target_logit) const {
    return static_cast<float>(__builtin_log(sum) + (static_cast<double>(maximum) - target_logit));
  }
};

void forward(const float* logits, const std::int32_t* targets, float* losses, std::int64_t rows,
             std::int64_t vocab_size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* x = logits + r * vocab_size;
    losses[r] = 0.0f;
    if (targets[r] < 0) continue;
    Row row(vocab_size);
    for (std::int64_t b = 0; b < row.num_blocks; ++b)
      row.blocks[b] = sum_block(x + b * row.block_size, row.count(b, vocab_size));
    row.combine();
    losses[r] = row.loss(x[targets[r]]);
  }
}

void multiply(float* x, float factor, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) x[i] *= factor;
}

void forward_backward(float* logits, const std::int32_t* targets, float* losses, float scale,
                      std::int64_t rows, std::int64_t vocab_size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    float* x = logits + r * vocab_size;
    losses[r] = 0.0f;
    if (targets[r] < 0) {
      for (std::int64_t i = 0; i < vocab_size; ++i) x[i] = 0.0f;
      continue;
    }
    const float target_logit = x[targets[r]];
    Row row(vocab_size);
    for (std::int64_t b = 0; b < row.num_blocks; ++b)
      row.blocks[b] = exponentiate_block(x + b * row.block_size, row.count(b, vocab_size));
    row.combine();
    losses[r] = row.loss(target_logit);
    for (std::int64_t b = 0; b < row.num_blocks; ++b) {
      const double factor =
          scale * static_cast<double>(exp_of(row.blocks[b].maximum - row.maximum));
      multiply(x + b * row.block_size, static_cast<float>(factor / row.sum),
               row.count(b, vocab_size));
    }
    x[targets[r]] -= scale;
  }
}

void weights(const float* logits, float inverse_temperature, float* out, std::int64_t count) {
  const float reference = reference_of(maximum_of(logits, count));
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i)
    out[i] = exp_nonpositive((logits[i] - reference) * inverse_temperature);
}

}  // namespace

const CrossEntropyKernels cross_entropy_kernels = {forward, forward_backward, weights};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
