#pragma once

#include "kernels/device/cpu_kernels.h"

namespace chaski {

struct MocDecodeProblem {
  std::int64_t tokens;
  std::int64_t hidden;
  std::int64_t size;  // intermediate
  std::int64_t keep;
  int threads;

  static constexpr std::int64_t kMaxTokens = 16;
};
// Of the selection: [tokens, keep].
struct MocDecodeSelection {
  const float* gate;
  const std::uint16_t* channels;
};

struct MocDecodeKernels {
  // As 32-bit words.
  std::int64_t (*scratch_words)(const MocDecodeProblem& problem);
  // x, out [tokens, hidden]; up, down_transposed [size, hidden].
  void (*run)(const MocDecodeProblem& problem, const float* x, const float* up,
              const float* down_transposed, const MocDecodeSelection& selection, float* out,
              void* scratch);
  // from [rows, cols], to [cols, rows].
  void (*transpose_32)(const std::uint32_t* from, std::uint32_t* to, std::int64_t rows,
                       std::int64_t cols, int threads);
  void (*transpose_16)(const std::uint16_t* from, std::uint16_t* to, std::int64_t rows,
                       std::int64_t cols, int threads);
};
CHASKI_DECLARE_KERNELS(MocDecodeKernels, moc_decode_kernels)

}  // namespace chaski
