#pragma once

#include "kernels/cpu_kernels.h"

namespace chaski {

struct MocProductsProblem {
  std::int64_t tokens;
  std::int64_t hidden;
  std::int64_t size;  // intermediate
  std::int64_t keep;
  bool bitmap;
  std::int64_t index_bytes;  // of a token
  int threads;
};

// What is kept: [tokens, keep] and [tokens, index_bytes].
struct MocProductsKept {
  const float* gate;
  float* up;
  float* silu;     // may be null
  float* product;  // may be null
  const std::uint8_t* index;
};

// [size, hidden] each, but down: [hidden, size].
struct MocProductsWeights {
  const float* gate;
  const float* up;
  const float* down;
};
struct MocProductsGradients {  // each may be null
  float* gate;
  float* up;
  float* down;
};

struct MocProductsKernels {
  // Columns of the hidden dimension are computed so many at a time.
  std::int64_t width;
  // Of all threads.
  std::int64_t (*forward_scratch_floats)(const MocProductsProblem& problem);
  std::int64_t (*backward_scratch_floats)(const MocProductsProblem& problem);
  // x, out: [tokens, hidden]. kept.gate and kept.index are given, the others written.
  void (*forward)(const MocProductsProblem& problem, const float* x,
                  const MocProductsWeights& weights, const MocProductsKept& kept, float* out,
                  float* scratch);
  // x may be null where neither gate nor up has a gradient. dx may be x.
  void (*backward)(const MocProductsProblem& problem, const float* dout, const float* x,
                   const MocProductsWeights& weights, const MocProductsKept& kept,
                   const MocProductsGradients& gradients, float* dx, float* scratch);
};
CHASKI_DECLARE_KERNELS(MocProductsKernels, moc_products_kernels)

}  // namespace chaski
