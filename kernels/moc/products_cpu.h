#pragma once

#include "kernels/device/cpu_kernels.h"
#include "kernels/moc/moc_cpu.h"

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
  // x, out: [tokens, hidden]. kept.gate and kept.index are given, the others written; out may be
  // null.
  void (*forward)(const MocProductsProblem& problem, const float* x,
                  const MocProductsWeights& weights, const MocRows& kept, float* out,
                  float* scratch);
  // x may be null where neither gate nor up has a gradient. dx may be x.
  void (*backward)(const MocProductsProblem& problem, const float* dout, const float* x,
                   const MocProductsWeights& weights, const MocRows& kept,
                   const MocProductsGradients& gradients, float* dx, float* scratch);
};
CHASKI_DECLARE_KERNELS(MocProductsKernels, moc_products_kernels)

}  // namespace chaski
