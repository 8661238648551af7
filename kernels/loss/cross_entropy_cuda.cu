#include "kernels/device/cuda_pack.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/cross_entropy_cuda.h"

namespace chaski::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 4;  // packs that a thread asks for at a time

// Σ exp(x - maximum) of the numbers seen so far.
struct OnlineSum {
  float maximum = -INFINITY;
  float sum = 0.0f;

  // What is subtracted: -inf minus itself would be NaN. NaN and +inf reach the sum as NaN.
  __device__ static float reference_of(float maximum) {
    return maximum == -INFINITY ? 0.0f : maximum;
  }

  template <int kCount>
  __device__ void add(const float* x) {
    float larger = maximum;
    for (int i = 0; i < kCount; ++i) larger = fmaxf(larger, x[i]);
    const float reference = reference_of(larger);
    if (larger > maximum) {
      sum *= expf(maximum - reference);
      maximum = larger;
    }
    for (int i = 0; i < kCount; ++i) sum += expf(x[i] - reference);
  }
};

// Where a row's loss and its gradient come from.
struct Row {
  float reference;
  float sum;  // of exp(x - reference)
};

// By all threads of a block. kWidth: elements that a thread reads at once.
template <int kWidth>
__device__ Row sum_row(const float* x, std::int64_t vocab_size) {
  OnlineSum mine;
  constexpr int kCount = kLoads * kWidth;
  std::int64_t begin = 0;
  for (; begin + kThreads * kCount <= vocab_size; begin += kThreads * kCount) {
    float values[kCount];
    for (int n = 0; n < kLoads; ++n) {
      const auto pack =
          Pack<float, kWidth>::load(x + begin + (n * kThreads + threadIdx.x) * kWidth);
      for (int k = 0; k < kWidth; ++k) values[n * kWidth + k] = pack.at[k];
    }
    mine.add<kCount>(values);
  }
  for (std::int64_t i = begin + threadIdx.x * kWidth; i < vocab_size; i += kThreads * kWidth) {
    const auto pack = Pack<float, kWidth>::load(x + i);
    mine.add<kWidth>(pack.at);
  }
  const float reference = OnlineSum::reference_of(block_max<kThreads>(mine.maximum));
  return {reference, block_sum<kThreads>(mine.sum * expf(mine.maximum - reference))};
}

// scale · (softmax(x) - the target's 1). dx may lie over x: each thread reads what it writes, and
// several packs before it writes any.
template <typename T, int kWidth>
__device__ void write_gradient(const float* x, std::int64_t target, const Row& row, float scale,
                               T* dx, std::int64_t vocab_size) {
  const float factor = scale / row.sum;
  for (std::int64_t begin = threadIdx.x * kWidth; begin < vocab_size;
       begin += kThreads * kLoads * kWidth) {
    Pack<float, kWidth> packs[kLoads] = {};
    for (int n = 0; n < kLoads; ++n) {
      const std::int64_t i = begin + n * kThreads * kWidth;
      if (i < vocab_size) packs[n] = Pack<float, kWidth>::load(x + i);
    }
    for (int n = 0; n < kLoads; ++n) {
      const std::int64_t i = begin + n * kThreads * kWidth;
      if (i >= vocab_size) break;
      Pack<T, kWidth> gradient;
      for (int k = 0; k < kWidth; ++k) {
        const float share = expf(packs[n].at[k] - row.reference) * factor;
        gradient.at[k] = i + k == target ? share - scale : share;
      }
      gradient.store(dx + i);
    }
  }
}

// A block for each row. Null dlogits: only the losses.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const float* logits, const std::int32_t* targets, float* losses,
                         float scale, T* dlogits, std::int64_t vocab_size) {
  const float* x = logits + blockIdx.x * vocab_size;
  T* dx = dlogits == nullptr ? nullptr : dlogits + blockIdx.x * vocab_size;
  const std::int64_t target = targets[blockIdx.x];
  if (target < 0 || target >= vocab_size) {
    const float neither = target == kIgnoredTarget ? 0.0f : NAN;
    if (threadIdx.x == 0) losses[blockIdx.x] = neither;
    if (dx == nullptr) return;
    for (std::int64_t i = threadIdx.x; i < vocab_size; i += kThreads)
      dx[i] = from_float<T>(neither);
    return;
  }
  const float target_logit = x[target];
  const Row row = sum_row<kWidth>(x, vocab_size);  // its barriers stand before any write
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = static_cast<float>(log(static_cast<double>(row.sum)) +
                                            (static_cast<double>(row.reference) - target_logit));
  }
  if (dx != nullptr) write_gradient<T, kWidth>(x, target, row, scale, dx, vocab_size);
}

template <typename T>
void launch_cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses,
                          float scale, T* dlogits) {
  constexpr int kWidth = kVectorWidth<float>;
  const std::int64_t vocab_size = logits.shape().back();
  const float* x = logits.f32();
  const bool wide =
      vocab_size % kWidth == 0 && are_aligned<kWidth>(x) && are_aligned<kWidth>(dlogits);
  launch(logits.device(), "cross_entropy", {grid_of(logits.shape().num_rows()), kThreads},
         wide ? cross_entropy_kernel<T, kWidth> : cross_entropy_kernel<T, 1>, x, targets.i32(),
         losses.f32(), scale, dlogits, vocab_size);
}

}  // namespace

void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses, float scale,
                   const Tensor& dlogits) {
  if (dlogits && dlogits.dtype() == DType::bf16) {
    launch_cross_entropy(logits, targets, losses, scale, elements<bf16>(dlogits));
  } else {
    launch_cross_entropy(logits, targets, losses, scale, elements<float>(dlogits));
  }
}

}  // namespace chaski::cuda
