#include "kernels/optimizer/adamw_cpu.h"

#include "kernels/device/bf16.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

template <bool kComputes>
void step_all(const AdamWFactors& factors, float* parameter, const float* gradient,
              float* first_moment, float* second_moment, std::uint16_t* compute, std::int64_t count,
              int threads) {
  const AdamWFactors f = factors;
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    const float m = f.beta1 * first_moment[i] + f.one_minus_beta1 * g;
    const float v = f.beta2 * second_moment[i] + f.one_minus_beta2 * (g * g);
    const float denominator = __builtin_sqrtf(v) * f.inverse_sqrt_correction + f.epsilon;
    first_moment[i] = m;
    second_moment[i] = v;
    const float p = parameter[i] * f.decay - f.step_size * (m / denominator);
    parameter[i] = p;
    if constexpr (kComputes) compute[i] = bf16_from_float(p);
  }
}

void step(const AdamWFactors& factors, float* parameter, const float* gradient, float* first_moment,
          float* second_moment, std::uint16_t* compute, std::int64_t count, int threads) {
  (compute == nullptr ? step_all<false> : step_all<true>)(factors, parameter, gradient,
                                                          first_moment, second_moment, compute,
                                                          count, threads);
}

}  // namespace

const AdamWKernels adamw_kernels = {step};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
