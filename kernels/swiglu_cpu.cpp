#include "kernels/swiglu_cpu.h"

#include "kernels/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

void forward(const float* gate_up, float* activation, std::int64_t rows, std::int64_t size,
             int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * 2 * size;
    const float* up = gate + size;
    float* out = activation + row * size;
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) out[i] = gate[i] * sigmoid_of(gate[i]) * up[i];
  }
}

// The operands may be the same memory element by element, which omp simd permits: each element is
// read before it is written.
template <bool kWithActivation>
void backward_row(const float* gate, const float* up, const float* dactivation, float* dgate,
                  float* dup, float* activation, std::int64_t size) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const float g = gate[i];
    const float u = up[i];
    const float d = dactivation[i];
    const float sigmoid = sigmoid_of(g);
    const float silu = g * sigmoid;
    dgate[i] = d * u * (sigmoid + silu * (1.0f - sigmoid));
    dup[i] = d * silu;
    if constexpr (kWithActivation) activation[i] = silu * u;
  }
}

void backward(const float* gate_up, const float* dactivation, float* dgate_up, float* activation,
              std::int64_t rows, std::int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * 2 * size;
    float* dgate = dgate_up + row * 2 * size;
    const float* d = dactivation + row * size;
    if (activation != nullptr) {
      backward_row<true>(gate, gate + size, d, dgate, dgate + size, activation + row * size, size);
    } else {
      backward_row<false>(gate, gate + size, d, dgate, dgate + size, nullptr, size);
    }
  }
}

}  // namespace

const SwigluKernels swiglu_kernels = {forward, backward};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
