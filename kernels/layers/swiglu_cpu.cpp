#include "kernels/layers/swiglu_cpu.h"

#include "kernels/elementwise/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

template <bool kWithSilu>
void forward_row(const float* gate, const float* up, float* activation, float* silu,
                 std::int64_t size) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const float s = gate[i] * sigmoid_of(gate[i]);
    if constexpr (kWithSilu) silu[i] = s;
    activation[i] = s * up[i];
  }
}

void forward(const float* gate_up, float* activation, float* silu, std::int64_t rows,
             std::int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * 2 * size;
    float* out = activation + row * size;
    if (silu != nullptr) {
      forward_row<true>(gate, gate + size, out, silu + row * size, size);
    } else {
      forward_row<false>(gate, gate + size, out, nullptr, size);
    }
  }
}

// The operands may be the same memory element by element, which omp simd permits: each element is
// read before it is written.
template <bool kWithActivation, bool kWithSilu>
void backward_row(const float* gate, const float* up, const float* dactivation, float* dgate,
                  float* dup, float* activation, const float* silu_kept, std::int64_t size) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const float g = gate[i];
    const float u = up[i];
    const float d = dactivation[i];
    const float sigmoid = sigmoid_of(g);
    const float silu = kWithSilu ? silu_kept[i] : g * sigmoid;
    dgate[i] = d * u * (sigmoid + silu * (1.0f - sigmoid));
    dup[i] = d * silu;
    if constexpr (kWithActivation) activation[i] = silu * u;
  }
}

void backward(const float* gate_up, const float* dactivation, float* dgate_up, float* activation,
              const float* silu, std::int64_t rows, std::int64_t size, int threads) {
  const auto of_row =
      silu != nullptr
          ? (activation != nullptr ? backward_row<true, true> : backward_row<false, true>)
          : (activation != nullptr ? backward_row<true, false> : backward_row<false, false>);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * 2 * size;
    float* dgate = dgate_up + row * 2 * size;
    const std::int64_t first = row * size;
    of_row(gate, gate + size, dactivation + first, dgate, dgate + size,
           activation == nullptr ? nullptr : activation + first,
           silu == nullptr ? nullptr : silu + first, size);
  }
}

}  // namespace

const SwigluKernels swiglu_kernels = {forward, backward};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
