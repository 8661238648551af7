#pragma once

// The tensor-core instructions of sm_80 and later that .cu files use, for a whole warp. Defined,
// with the macro CHASKI_TENSOR_CORES, where the compiler's pass has such an architecture; else
// callers use a plain twin. The tests' execution model brings functions of the same names that do
// what the PTX manual says (tests/cuda_model/tensor_cores.h).

#include "kernels/device/cuda_device.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define CHASKI_TENSOR_CORES

namespace chaski::cuda {

__device__ inline unsigned shared_address(const bf16* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Four squares of 8 × 8 from shared memory: lane l gives the address of row l % 8 of square l / 8,
// a multiple of 16 bytes, and gets the elements (l / 4, l % 4 · 2) and the next one of each.
__device__ inline void load_squares(unsigned (&squares)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(squares[0]), "=r"(squares[1]), "=r"(squares[2]), "=r"(squares[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the transposed squares.
__device__ inline void load_transposed_squares(unsigned (&squares)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(squares[0]), "=r"(squares[1]), "=r"(squares[2]), "=r"(squares[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum [16, 8] += a [16, 16] · b [16, 8]. Of sum, lane l holds (l / 4, l % 4 · 2) and the next one,
// then those 8 rows below. Of a, squares: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
// Of b, transposed squares: its upper and its lower half.
__device__ inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b_upper,
                                    unsigned b_lower) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_upper), "r"(b_lower));
}

}  // namespace chaski::cuda

#endif
