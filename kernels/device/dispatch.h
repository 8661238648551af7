#pragma once

#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// What every op does before its work: find the device, check the operands. Operands that do not fit
// throw std::invalid_argument naming the op, the operand, its shape and the expected one.

// The device of an op's first operand. Throws std::invalid_argument when the operand is empty.
Device& device_of(const char* op, const Tensor& operand);

// Ends an op with the CUDA backend's function of the arguments where the device is a GPU. A build
// without CUDA creates no such device.
#ifdef CHASKI_CUDA
#define CHASKI_CUDA_OP(device, call)                            \
  do {                                                          \
    if ((device).backend() == Backend::cuda) return cuda::call; \
  } while (false)
#else
#define CHASKI_CUDA_OP(device, call) static_cast<void>(device)
#endif

// `tensor` holds rows × cols elements with cols in the last dimension ([B, S, H] passes as [B·S,
// H]).
void require_matrix(const char* op, const char* name, const Tensor& tensor, std::int64_t rows,
                    std::int64_t cols);
// `tensor` holds `count` elements, in any shape.
void require_elements(const char* op, const char* name, const Tensor& tensor, std::int64_t count);
void require_dtype(const char* op, const char* name, const Tensor& tensor, DType dtype);
// The two do not share memory.
void require_distinct(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                      const Tensor& b);

// Threads for an op over `elements` elements: one where starting the others would cost more than
// they gain. Kernels give the same result for any number of threads.
int threads_for(const Device& device, std::int64_t elements);

}  // namespace chaski
