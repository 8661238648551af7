#pragma once

#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/products/matmul.h"

namespace chaski::cuda {

// The product of kernels/products/matmul.h with checked shapes and k > 0, by cuBLASLt: a and b of
// one type, f32 or bf16, out f32 or (from bf16) bf16; sums in fp32. f32 operands are multiplied as
// TF32 where the device allows that. The heuristics are asked once a shape; workspace comes from
// the arena. Throws std::runtime_error where cuBLASLt has no way for the shape.
void gemm(Device& device, const Matrix& a, Transpose transpose_a, const Matrix& b,
          Transpose transpose_b, const Matrix& out, Accumulate accumulate);

// What every product takes of the workspace: as NVIDIA recommends for Hopper; older GPUs use less
// of it.
inline constexpr std::int64_t kGemmWorkspaceBytes = std::int64_t{32} << 20;

// Zeroes the rows of `out`, not what lies between them.
void clear(const Matrix& out);

// E.g. "cuBLASLt 13.1.0".
const char* gemm_library_name();

}  // namespace chaski::cuda
