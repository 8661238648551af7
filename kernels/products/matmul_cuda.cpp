#include "kernels/products/matmul_cuda.h"

#include "kernels/device/cuda_context.h"

namespace chaski::cuda {

void clear(const Matrix& out) {
  const auto element = static_cast<std::size_t>(size_of(out.tensor.dtype()));
  check(cudaMemset2DAsync(out.raw(), static_cast<std::size_t>(out.stride) * element, 0,
                          static_cast<std::size_t>(out.cols) * element,
                          static_cast<std::size_t>(out.rows), stream_of(out.tensor.device())),
        "zeroing a matrix");
}

}  // namespace chaski::cuda
