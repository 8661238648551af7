#include "kernels/device/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/elementwise/elementwise_cuda.h"
#include "kernels/elementwise/fill_normal_cpu.h"

namespace chaski {

void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream) {
  constexpr const char* kOp = "fill_normal";
  Device& device = device_of(kOp, out);
  if (device.is_counting()) return count_op(device, kOp, {out});
  CHASKI_CUDA_OP(device, fill_normal(out, mean, standard_deviation, seed, stream));
  const std::int64_t count = out.num_elements();
  CHASKI_CPU_KERNELS(normal_kernels)
      .fill(out.f32(), count, mean, standard_deviation, seed, stream, threads_for(device, count));
}

}  // namespace chaski
