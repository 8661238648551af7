#include "kernels/device/cuda_pack.h"
#include "kernels/elementwise/philox.h"
#include "kernels/optimizer/adamw_cuda.h"

namespace chaski::cuda {
namespace {

__device__ void update(const AdamWFactors& f, float gradient, float& parameter, float& first,
                       float& second) {
  const float g = gradient * f.gradient_scale;
  first = f.beta1 * first + f.one_minus_beta1 * g;
  second = f.beta2 * second + f.one_minus_beta2 * (g * g);
  const float denominator = sqrtf(second) * f.inverse_sqrt_correction + f.epsilon;
  parameter = parameter * f.decay - f.step_size * (first / denominator);
}

// The four tensors are of T; compute may be null.
template <typename T>
struct Step {
  static constexpr int kWidth = kVectorWidth<T>;
  AdamWFactors factors;
  T* parameter;
  const T* gradient;
  T* first_moment;
  T* second_moment;
  bf16* compute;

  bool aligned() const {
    return are_aligned<kWidth>(parameter, gradient, first_moment, second_moment) &&
           are_aligned<kWidth>(compute);
  }
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    auto p = Pack<T, kCount>::load(parameter + i);
    const auto g = Pack<T, kCount>::load(gradient + i);
    auto m = Pack<T, kCount>::load(first_moment + i);
    auto v = Pack<T, kCount>::load(second_moment + i);
    for (int k = 0; k < kCount; ++k) update(factors, g.at[k], p.at[k], m.at[k], v.at[k]);
    p.store(parameter + i);
    m.store(first_moment + i);
    v.store(second_moment + i);
    if (compute == nullptr) return;
    Pack<bf16, kCount> rounded;
    for (int k = 0; k < kCount; ++k) rounded.at[k] = p.at[k];
    rounded.store(compute + i);
  }
};

// To one of the two neighbours among bf16, the nearer the likelier: `noise` has 16 random bits.
// What it returns is a bf16 already.
__device__ float round_stochastically(float x, std::uint32_t noise) {
  if (!isfinite(x)) return x;
  return __uint_as_float((__float_as_uint(x) + (noise & 0xffffu)) & 0xffff0000u);
}

struct StochasticStep {
  static constexpr int kWidth = kVectorWidth<bf16>;
  Step<bf16> step;
  std::uint64_t key;
  std::uint64_t stream_and_step;

  bool aligned() const { return step.aligned(); }
  // Four words serve a pair of elements, so that the noise of an element does not depend on kCount.
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    auto p = Pack<bf16, kCount>::load(step.parameter + i);
    const auto g = Pack<bf16, kCount>::load(step.gradient + i);
    auto m = Pack<bf16, kCount>::load(step.first_moment + i);
    auto v = Pack<bf16, kCount>::load(step.second_moment + i);
    PhiloxWords words = {};
    // Else nvcc keeps the elements in memory for some architectures.
    CHASKI_UNROLL
    for (int k = 0; k < kCount; ++k) {
      update(step.factors, g.at[k], p.at[k], m.at[k], v.at[k]);
      if (kCount == 1 || k % 2 == 0) {
        words =
            philox4x32(philox_counter(static_cast<std::uint64_t>(i + k) / 2, stream_and_step), key);
      }
      const bool second = (i + k) % 2 != 0;
      const std::uint32_t noise = second ? words.at[2] : words.at[0];
      p.at[k] = round_stochastically(p.at[k], noise);
      m.at[k] = round_stochastically(m.at[k], noise >> 16);
      v.at[k] = round_stochastically(v.at[k], second ? words.at[3] : words.at[1]);
    }
    p.store(step.parameter + i);
    m.store(step.first_moment + i);
    v.store(step.second_moment + i);
    if (step.compute != nullptr) p.store(step.compute + i);
  }
};

template <typename T>
Step<T> step_of(const AdamWFactors& factors, const Tensor& parameter, const Tensor& gradient,
                const Tensor& first_moment, const Tensor& second_moment, const Tensor& compute) {
  return {factors,
          elements<T>(parameter),
          elements<T>(gradient),
          elements<T>(first_moment),
          elements<T>(second_moment),
          elements<bf16>(compute)};
}

}  // namespace

void adamw_step(const AdamWHyperparameters& hyperparameters, const AdamWFactors& factors,
                const Tensor& parameter, const Tensor& gradient, const Tensor& first_moment,
                const Tensor& second_moment, const Tensor& compute) {
  constexpr const char* kOp = "adamw_step";
  const AdamWHyperparameters& h = hyperparameters;
  Device& device = parameter.device();
  const std::int64_t count = parameter.num_elements();
  if (parameter.dtype() == DType::f32) {
    map(device, kOp, count,
        step_of<float>(factors, parameter, gradient, first_moment, second_moment, compute));
    return;
  }
  const Step<bf16> step =
      step_of<bf16>(factors, parameter, gradient, first_moment, second_moment, compute);
  if (!h.stochastic_rounding) return map(device, kOp, count, step);
  // Other numbers than fill_normal makes of the same seed.
  constexpr std::uint64_t kDomain = 0x726f756e64696e67u;
  const auto stream_and_step = static_cast<std::uint64_t>(h.stream) << 32 |
                               static_cast<std::uint32_t>(static_cast<std::uint64_t>(h.step));
  map(device, kOp, count, StochasticStep{step, h.seed ^ kDomain, stream_and_step});
}

}  // namespace chaski::cuda
