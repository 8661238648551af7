#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

// As MocShape and MocKept, for the inner loops.
struct MocProblem {
  std::int64_t size;  // intermediate
  std::int64_t keep;
  bool two_of_eight;
  bool by_silu_magnitude;
  bool bitmap;
  std::int64_t index_bytes;
};
struct MocRows {
  float* gate;
  float* up;
  float* silu;     // may be null
  float* product;  // may be null
  std::uint8_t* index;
};

struct MocKernels {
  // Of one thread.
  std::int64_t (*scratch_floats)(const MocProblem& problem);
  // From gates [rows, size]: kept.gate and kept.index.
  void (*select)(const MocProblem& problem, const float* gates, const MocRows& kept, float* scratch,
                 std::int64_t rows, int threads);
  // gate_up [rows, 2 · size]; scratch: threads · scratch_floats.
  void (*forward)(const MocProblem& problem, const float* gate_up, const MocRows& kept,
                  float* activation, float* scratch, std::int64_t rows, int threads);
  // activation may be null, or dactivation.
  void (*backward)(const MocProblem& problem, const MocRows& kept, const float* dactivation,
                   float* dgate_up, float* activation, float* scratch, std::int64_t rows,
                   int threads);
  // counts [size]; positive [2], the halves of a number, the lower one first.
  void (*count)(const MocProblem& problem, const MocRows& kept, std::int32_t* counts,
                std::int32_t* positive, float* scratch, std::int64_t rows);
};
CHASKI_DECLARE_KERNELS(MocKernels, moc_kernels)

}  // namespace chaski
