#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

// Kernels with and without faults, for the tests of the execution model. Each function launches one
// on the default stream and returns what the launch returned; pointers are of the device.
namespace chaski::cuda_model::test {

/// out[0] = the sum of x[0 … n).
cudaError_t block_sum(const float* x, float* out, int n, int threads);
cudaError_t block_sum_bf16(const void* x, float* out, int n, int threads);
/// out[i] = the value of thread i + 1, through shared memory. Without `barrier`: wrong.
cudaError_t neighbour(float* out, int threads, bool barrier);
/// out[i] = sum over rounds of the neighbour's round. Without the second barrier a fast thread
/// overwrites what a slow one has yet to read.
cudaError_t rounds(float* out, int threads, bool second_barrier);

enum class Divergence {
  kEndedThread,      // one thread returns before the barrier
  kTwoPlaces,        // two branches, each with a barrier
  kEndedLane,        // a lane of the mask has returned
  kOtherOperation,   // half of the mask shuffles, half votes
  kOtherPlace,       // two branches, each with the same shuffle
  kLaneBeyondBlock,  // the mask has more lanes than the block
  kOwnLaneMissing,   // the mask has not the caller's lane
  kReadsOutsideMask  // a lane that is not in the mask
};
cudaError_t diverge(Divergence which);

enum class Overrun { kStatic, kStaticOfTemplate, kIndexOfMerged, kDynamic, kDevice, kMisaligned };
/// Reads at index `at` of 9 elements (kMisaligned: 4 floats from at).
cudaError_t overrun(Overrun which, const float* memory, float* out, int at);

cudaError_t launch_shape(dim3 grid, dim3 block, std::size_t shared_bytes);
cudaError_t allow_shared(std::size_t bytes);

/// out[0 … 2]: static shared memory of a plain kernel, of a template, dynamic, never written in
/// this block (the first block has written its own).
cudaError_t read_unwritten(float* out);

/// tickets[t] += 1 for the ticket that each of grid x block threads draws, order[t] = its number;
/// *total += value of the thread.
cudaError_t draw_tickets(unsigned* counter, unsigned* tickets, unsigned* order, float* total,
                         int grid, int block);

/// For lane l of one warp: out[l * 12 + k], see the kernel.
cudaError_t warp_operations(unsigned* out);
/// For each thread: out[3 * t …] = or, and, count of x[t] != 0.
cudaError_t block_votes(const int* x, int* out, int threads);
/// out[0 … 11], see the kernel.
cudaError_t integer_intrinsics(unsigned* out);
/// Writes value to out[0 … n), on a stream.
cudaError_t fill(cudaStream_t stream, float* out, float value, int n);
/// out[i] += in[i], on a stream.
cudaError_t accumulate(cudaStream_t stream, float* out, const float* in, int n);
/// Every thread passes `barriers` barriers.
cudaError_t many_barriers(int grid, int threads, int barriers);

}  // namespace chaski::cuda_model::test
