#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// What every op does before its work: find the device, check the operands. Operands that do not fit
// throw std::invalid_argument naming the op, the operand, its shape and the expected one.

// The device of an op's first operand. Throws std::invalid_argument when the operand is empty.
Device& device_of(const char* op, const Tensor& operand);

// All that an op does on a counting device once its operands are checked: it takes and gives back
// its workspace and states its work. `operands` once for each reading and each writing, empty ones
// for nothing; `workspace_bytes` as charged.
void count_op(Device& device, const char* op, std::initializer_list<Tensor> operands,
              double flops = 0.0, std::int64_t workspace_bytes = 0);
// The same of an op whose operands are parts of tensors.
void count_op(Device& device, const OpCount& count, std::int64_t workspace_bytes);

// Calls work(begin, size) for the parts of 0 … count - 1, `size` each, but for a smaller last one.
// On a counting device those that are alike are one.
template <typename Work>
void for_each_part(Device& device, std::int64_t count, std::int64_t size, const Work& work) {
  std::int64_t begin = 0;
  if (device.is_counting() && count > size) {
    const std::int64_t outer = device.op_repetitions();
    device.repeat_op_counts(outer * (count / size));
    work(0, size);
    device.repeat_op_counts(outer);
    begin = count / size * size;
  }
  for (; begin < count; begin += size) work(begin, std::min(size, count - begin));
}

// Throws std::logic_error for a counting device, on which an op must have ended.
void require_memory(const Device& device);

// Ends an op with the CUDA backend's function of the arguments where the device is a GPU. A build
// without CUDA creates no such device.
#ifdef CHASKI_CUDA
#define CHASKI_CUDA_OP(device, call)                            \
  do {                                                          \
    require_memory(device);                                     \
    if ((device).backend() == Backend::cuda) return cuda::call; \
  } while (false)
#else
#define CHASKI_CUDA_OP(device, call) require_memory(device)
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
