#include <cuda_bf16.h>

#include "tests/cuda_model/test_kernels.h"

namespace chaski::cuda_model::test {

constexpr unsigned kAll = 0xffffffffU;

// With external linkage: its shared variables are merged by the linker.
template <typename T>
__global__ void index_of_merged(float* out, int at) {
  __shared__ T merged[9];
  merged[threadIdx.x] = T(1);
  __syncthreads();
  if (threadIdx.x == 0) out[0] = static_cast<float>(merged[at]);
}

namespace {

template <typename... Parameters, typename... Arguments>
cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <typename T>
__global__ void __launch_bounds__(1024) sum_kernel(const T* __restrict__ x, float* out, int n) {
  __shared__ float warp_sums[32];
  float sum = 0.0F;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    sum += static_cast<float>(__ldg(x + i));
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(kAll, sum, offset);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? warp_sums[threadIdx.x] : 0.0F;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
    if (threadIdx.x == 0) out[0] = sum;
  }
}

__global__ void neighbour_kernel(float* out, bool barrier) {
  __shared__ float values[1024];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

__global__ void rounds_kernel(float* out, bool second_barrier) {
  __shared__ float values[1024];
  float sum = 0.0F;
  for (int round = 0; round < 4; ++round) {
    values[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    sum += values[(threadIdx.x + 1) % blockDim.x];
    if (second_barrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void diverge_kernel(Divergence which) {
  const unsigned lane = threadIdx.x % 32;
  switch (which) {
    case Divergence::kEndedThread:
      if (threadIdx.x == 5) return;
      __syncthreads();
      break;
    case Divergence::kTwoPlaces:
      if (threadIdx.x < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Divergence::kEndedLane:
      if (lane == 7) return;
      __shfl_xor_sync(kAll, lane, 1);
      break;
    case Divergence::kOtherOperation:
      if (lane < 16) {
        __shfl_xor_sync(kAll, lane, 1);
      } else {
        __any_sync(kAll, 1);
      }
      break;
    case Divergence::kOtherPlace:
      if (lane < 16) {
        __shfl_xor_sync(kAll, lane, 1);
      } else {
        __shfl_xor_sync(kAll, lane, 1);
      }
      break;
    case Divergence::kLaneBeyondBlock:
      if (threadIdx.x >= 32) __shfl_xor_sync(kAll, lane, 1);
      break;
    case Divergence::kOwnLaneMissing:
      __shfl_sync(0xfU, lane, 0);
      break;
    case Divergence::kReadsOutsideMask:
      if (lane < 16) __shfl_sync(0xffffU, lane, 20);
      break;
  }
}

__global__ void static_overrun(float* out, int at) {
  __shared__ float values[9];
  float* const pointer = values;
  pointer[threadIdx.x] = 1.0F;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = __ldcs(pointer + at);
}

template <typename T>
__global__ void template_overrun(float* out, int at) {
  __shared__ T values[9];
  T* const pointer = values;
  pointer[threadIdx.x] = T(1);
  __syncthreads();
  if (threadIdx.x == 0) out[0] = static_cast<float>(__ldcs(pointer + at));
}

__global__ void dynamic_overrun(float* out, int at) {
  auto* const values = reinterpret_cast<float*>(chaski_cuda_model_dynamic_shared());
  values[threadIdx.x] = 1.0F;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = values[at];
}

__global__ void device_overrun(const float* memory, float* out, int at) {
  out[0] = memory[at];
}

__global__ void misaligned(const float* memory, float* out, int at) {
  const float4 vector = *reinterpret_cast<const float4*>(memory + at);
  out[0] = vector.x + vector.w;
}

__global__ void nothing() {}

template <typename T>
__global__ void unwritten_template(float* out) {
  __shared__ T values[3];
  if (blockIdx.x == 1) out[1] = static_cast<float>(values[2]);
  __syncthreads();
  values[threadIdx.x] = T(1);
}

__global__ void unwritten_plain(float* out) {
  __shared__ float values[3];
  auto* const dynamic = reinterpret_cast<float*>(chaski_cuda_model_dynamic_shared());
  if (blockIdx.x == 1) {
    out[0] = values[2];
    out[2] = dynamic[2];
  }
  __syncthreads();
  values[threadIdx.x] = 1.0F;
  dynamic[threadIdx.x] = 1.0F;
}

__global__ void ticket_kernel(unsigned* counter, unsigned* tickets, unsigned* order, float* total) {
  const unsigned ticket = atomicInc(counter, 0xffffffffU);
  atomicAdd(&tickets[ticket], 1U);
  order[ticket] = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(total, static_cast<float>(threadIdx.x));
}

__global__ void warp_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned* const results = out + lane * 12;
  results[0] = __shfl_sync(kAll, lane, 5);
  results[1] = __shfl_sync(kAll, lane, 9, 8);
  results[2] = __shfl_up_sync(kAll, lane, 3, 16);
  results[3] = __shfl_down_sync(kAll, lane, 3, 16);
  results[4] = __shfl_xor_sync(kAll, lane, 21);
  results[5] = __ballot_sync(kAll, lane % 3 == 0);
  results[6] = __match_any_sync(kAll, lane / 10);
  results[7] = __reduce_add_sync(kAll, lane);
  results[8] = static_cast<unsigned>(__reduce_min_sync(kAll, 3 - static_cast<int>(lane)));
  if (lane >= 24) results[9] = __reduce_max_sync(0xff000000U, lane ^ 1U);
  __syncwarp();
  const double wide = __shfl_xor_sync(kAll, 1.0 / (lane + 1), 1);
  results[10] = static_cast<unsigned>(1.0 / wide + 0.5) - 1;
  results[11] =
      static_cast<unsigned>(__all_sync(kAll, lane < 32) + 2 * __any_sync(kAll, lane > 31));
}

__global__ void votes_kernel(const int* x, int* out) {
  int* const results = out + 3 * threadIdx.x;
  results[0] = __syncthreads_or(x[threadIdx.x]);
  results[1] = __syncthreads_and(x[threadIdx.x]);
  results[2] = __syncthreads_count(x[threadIdx.x]);
}

__global__ void integer_kernel(unsigned* out) {
  out[0] = static_cast<unsigned>(__popc(0xf0f0U));
  out[1] = static_cast<unsigned>(__ffs(8));
  out[2] = static_cast<unsigned>(__clz(1));
  out[3] = __brev(1U);
  out[4] = __umulhi(0x80000000U, 6U);
  out[5] = __byte_perm(0x33221100U, 0x77665544U, 0x7530U);
  out[6] = __float_as_uint(1.0F);
  out[7] = static_cast<unsigned>(max(-3, 2) + min(-3, 2));
  out[8] = __funnelshift_l(0x80000000U, 1U, 1U);
  out[9] = static_cast<unsigned>(__mul24(-3, 5));
  unsigned word = 7;
  out[10] = atomicCAS(&word, 7U, 9U) + atomicMax(&word, 11U) + atomicExch(&word, 1U) + word;
  out[11] = static_cast<unsigned>(__float2int_rn(2.5F) + __float2int_rn(3.5F));
}

__global__ void fill_kernel(float* out, float value, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = value;
}

__global__ void accumulate_kernel(float* out, const float* in, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] += in[i];
}

__global__ void barriers_kernel(int barriers) {
  for (int i = 0; i < barriers; ++i) __syncthreads();
}

}  // namespace

cudaError_t block_sum(const float* x, float* out, int n, int threads) {
  return run(1, threads, 0, nullptr, sum_kernel<float>, x, out, n);
}

cudaError_t block_sum_bf16(const void* x, float* out, int n, int threads) {
  return run(1, threads, 0, nullptr, sum_kernel<__nv_bfloat16>,
             static_cast<const __nv_bfloat16*>(x), out, n);
}

cudaError_t neighbour(float* out, int threads, bool barrier) {
  return run(1, threads, 0, nullptr, neighbour_kernel, out, barrier);
}

cudaError_t rounds(float* out, int threads, bool second_barrier) {
  return run(1, threads, 0, nullptr, rounds_kernel, out, second_barrier);
}

cudaError_t diverge(Divergence which) {
  const int threads = which == Divergence::kLaneBeyondBlock ? 40 : 64;
  return run(2, threads, 0, nullptr, diverge_kernel, which);
}

cudaError_t overrun(Overrun which, const float* memory, float* out, int at) {
  switch (which) {
    case Overrun::kStatic:
      return run(1, 9, 0, nullptr, static_overrun, out, at);
    case Overrun::kStaticOfTemplate:
      return run(1, 9, 0, nullptr, template_overrun<double>, out, at);
    case Overrun::kIndexOfMerged:
      return run(1, 9, 0, nullptr, index_of_merged<float>, out, at);
    case Overrun::kDynamic:
      return run(1, 9, 9 * sizeof(float), nullptr, dynamic_overrun, out, at);
    case Overrun::kDevice:
      return run(1, 1, 0, nullptr, device_overrun, memory, out, at);
    default:
      return run(1, 1, 0, nullptr, misaligned, memory, out, at);
  }
}

cudaError_t launch_shape(dim3 grid, dim3 block, std::size_t shared_bytes) {
  return run(grid, block, shared_bytes, nullptr, nothing);
}

cudaError_t allow_shared(std::size_t bytes) {
  return cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

cudaError_t read_unwritten(float* out) {
  const auto error = run(2, 3, 3 * sizeof(float), nullptr, unwritten_plain, out);
  return error != cudaSuccess ? error : run(2, 3, 0, nullptr, unwritten_template<float>, out);
}

cudaError_t draw_tickets(unsigned* counter, unsigned* tickets, unsigned* order, float* total,
                         int grid, int block) {
  return run(grid, block, 0, nullptr, ticket_kernel, counter, tickets, order, total);
}

cudaError_t warp_operations(unsigned* out) {
  return run(1, 32, 0, nullptr, warp_kernel, out);
}

cudaError_t block_votes(const int* x, int* out, int threads) {
  return run(1, threads, 0, nullptr, votes_kernel, x, out);
}

cudaError_t integer_intrinsics(unsigned* out) {
  return run(1, 1, 0, nullptr, integer_kernel, out);
}

cudaError_t fill(cudaStream_t stream, float* out, float value, int n) {
  return run((n + 31) / 32, 32, 0, stream, fill_kernel, out, value, n);
}

cudaError_t accumulate(cudaStream_t stream, float* out, const float* in, int n) {
  return run((n + 31) / 32, 32, 0, stream, accumulate_kernel, out, in, n);
}

cudaError_t many_barriers(int grid, int threads, int barriers) {
  return run(grid, threads, 0, nullptr, barriers_kernel, barriers);
}

}  // namespace chaski::cuda_model::test
