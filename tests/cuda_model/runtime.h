#pragma once

#include <cstddef>
#include <cuda_runtime_api.h>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

// What the parts of the false CUDA runtime share. One lock for every call: as with one device that
// does one thing at a time.
namespace chaski::cuda_model {

std::recursive_mutex& api_mutex();
/// Remembers an error for cudaGetLastError of this thread; returns it.
cudaError_t remembered(cudaError_t error);

/// Tells work_without_host() that the host is there.
void count_call();

/// A call of the CUDA API: one at a time, its error remembered.
template <typename Body>
cudaError_t call(Body body) {
  const std::lock_guard lock(api_mutex());
  count_call();
  return remembered(body());
}

enum class MemoryKind { kDevice, kPinned, kPageable };

struct Region {
  unsigned char* base = nullptr;
  std::size_t bytes = 0;
  int device = 0;
};

/// The allocation that an address belongs to.
MemoryKind kind_of(const void* address);
std::optional<Region> device_region(const void* address);
/// True if [address, address + bytes) lies in one allocation of a device.
bool inside_device_region(const void* address, std::size_t bytes);

cudaError_t allocate_device(void** address, std::size_t bytes);
/// cudaErrorInvalidValue if `address` is not what an allocation returned.
cudaError_t free_device(void* address);

int current_device();

/// Queues work behind what the stream has, or records it if the stream is captured. Runs it at once
/// if the model is not lazy.
cudaError_t submit(cudaStream_t stream, std::function<void()> work);
/// Queues work behind what the stream has that needs other processes: it is done when `attempt`,
/// called again and again, returns true.
void submit_external(cudaStream_t stream, std::function<bool()> attempt);
/// From now on a thread of its own sees to work that waits for other processes while nobody calls
/// CUDA, as GPUs go on without their hosts.
void work_without_host();
/// Waits until the stream has done what it has queued. An error if it is captured.
cudaError_t drain(cudaStream_t stream);
/// The same for all streams.
void drain_all();
bool is_capturing(cudaStream_t stream);
/// For calls that a capture forbids: cudaErrorStreamCaptureUnsupported, and the capture is spoilt,
/// if there is one.
cudaError_t refuse_during_capture();

}  // namespace chaski::cuda_model
