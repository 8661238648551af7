#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <map>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/device_memory.h"
#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/runtime.h"

namespace chaski::cuda_model {
namespace {

constexpr int kMaxDevices = 16;

/// Allocations by address. Never destroyed: objects of the product may be freed at the very end.
std::map<const void*, Region>& device_regions() {
  static auto* const regions = new std::map<const void*, Region>;
  return *regions;
}

std::map<const void*, Region>& pinned_regions() {
  static auto* const regions = new std::map<const void*, Region>;
  return *regions;
}

std::size_t used[kMaxDevices] = {};

std::size_t& limit() {
  static std::size_t bytes = [] {
    const char* const text = std::getenv("CHASKI_CUDA_MODEL_MEMORY");
    return text == nullptr ? std::size_t{8} << 30 : std::strtoull(text, nullptr, 10);
  }();
  return bytes;
}

std::optional<Region> find(const std::map<const void*, Region>& regions, const void* address) {
  auto next = regions.upper_bound(address);
  if (next == regions.begin()) return std::nullopt;
  const Region& region = std::prev(next)->second;
  const auto* const byte = static_cast<const unsigned char*>(address);
  if (byte >= region.base + region.bytes) return std::nullopt;
  return region;
}

cudaError_t allocate_pinned(void** address, std::size_t bytes) {
  *address = nullptr;
  if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
  if (bytes == 0) return cudaSuccess;
  if (posix_memalign(address, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  count_allocation();
  std::memset(*address, 0xff, bytes);
  pinned_regions()[*address] = {static_cast<unsigned char*>(*address), bytes, 0};
  return cudaSuccess;
}

/// What a copy does when it runs.
void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               std::size_t width, std::size_t height) {
  auto* target = static_cast<unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  for (std::size_t row = 0; row < height; ++row) {
    std::memcpy(target + row * to_pitch, source + row * from_pitch, width);
  }
}

/// The kind that an address may not have in a copy of this kind, or one that ends beyond the
/// allocation.
bool fits(const void* address, std::size_t bytes, bool on_device, bool known) {
  if (known && on_device != (kind_of(address) == MemoryKind::kDevice)) return false;
  return kind_of(address) != MemoryKind::kDevice || inside_device_region(address, bytes);
}

struct Copy {
  void* to;
  std::size_t to_pitch;
  const void* from;
  std::size_t from_pitch;
  std::size_t width;
  std::size_t height;
  cudaMemcpyKind kind;
};

cudaError_t copy_async(const Copy& copy, cudaStream_t stream) {
  if (copy.width == 0 || copy.height == 0) return cudaSuccess;
  if (copy.width > copy.to_pitch || copy.width > copy.from_pitch) {
    return cudaErrorInvalidPitchValue;
  }
  const bool known = copy.kind != cudaMemcpyDefault;
  const bool to_device =
      copy.kind == cudaMemcpyHostToDevice || copy.kind == cudaMemcpyDeviceToDevice;
  const bool from_device =
      copy.kind == cudaMemcpyDeviceToHost || copy.kind == cudaMemcpyDeviceToDevice;
  if (!fits(copy.to, copy.to_pitch * (copy.height - 1) + copy.width, to_device, known) ||
      !fits(copy.from, copy.from_pitch * (copy.height - 1) + copy.width, from_device, known)) {
    return cudaErrorInvalidValue;
  }
  const bool captured = is_capturing(stream);
  if (kind_of(copy.from) == MemoryKind::kPageable && !captured) {
    // Staged: the source may change as soon as the call returns.
    auto staged = std::make_shared<std::vector<unsigned char>>(copy.width * copy.height);
    copy_rows(staged->data(), copy.width, copy.from, copy.from_pitch, copy.width, copy.height);
    const auto error = submit(stream, [copy, staged] {
      copy_rows(copy.to, copy.to_pitch, staged->data(), copy.width, copy.width, copy.height);
    });
    if (error != cudaSuccess || kind_of(copy.to) != MemoryKind::kPageable) return error;
    return drain(stream);
  }
  const auto error = submit(stream, [copy] {
    copy_rows(copy.to, copy.to_pitch, copy.from, copy.from_pitch, copy.width, copy.height);
  });
  if (error != cudaSuccess || captured || kind_of(copy.to) != MemoryKind::kPageable) return error;
  return drain(stream);  // returns to pageable memory only when done
}

cudaError_t set_async(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!fits(address, bytes, true, true)) return cudaErrorInvalidValue;
  return submit(stream, [address, value, bytes] { std::memset(address, value, bytes); });
}

cudaError_t set_rows_async(void* address, std::size_t pitch, int value, std::size_t width,
                           std::size_t height, cudaStream_t stream) {
  if (width == 0 || height == 0) return cudaSuccess;
  if (width > pitch) return cudaErrorInvalidPitchValue;
  if (!fits(address, pitch * (height - 1) + width, true, true)) return cudaErrorInvalidValue;
  return submit(stream, [=] {
    for (std::size_t row = 0; row < height; ++row)
      std::memset(static_cast<unsigned char*>(address) + row * pitch, value, width);
  });
}

}  // namespace

void set_memory_limit(std::size_t bytes) {
  limit() = bytes;
}

MemoryKind kind_of(const void* address) {
  if (find(device_regions(), address)) return MemoryKind::kDevice;
  return find(pinned_regions(), address) ? MemoryKind::kPinned : MemoryKind::kPageable;
}

std::optional<Region> device_region(const void* address) {
  return find(device_regions(), address);
}

bool inside_device_region(const void* address, std::size_t bytes) {
  const auto region = device_region(address);
  if (!region) return false;
  const auto offset =
      static_cast<std::size_t>(static_cast<const unsigned char*>(address) - region->base);
  return bytes <= region->bytes - offset;
}

cudaError_t allocate_device(void** address, std::size_t bytes) {
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  std::size_t& occupied = used[current_device()];
  if (occupied > limit() || bytes > limit() - occupied) return cudaErrorMemoryAllocation;
  *address = take_device_memory(bytes);
  if (*address == nullptr) return cudaErrorMemoryAllocation;
  count_allocation();
  occupied += bytes;
  device_regions()[*address] = {static_cast<unsigned char*>(*address), bytes, current_device()};
  return cudaSuccess;
}

cudaError_t free_device(void* address) {
  const auto found = device_regions().find(address);
  if (found == device_regions().end()) return cudaErrorInvalidValue;
  const Region region = found->second;
  used[region.device] -= region.bytes;
  device_regions().erase(found);
  return_device_memory(region.base, region.bytes);
  return cudaSuccess;
}

}  // namespace chaski::cuda_model

using namespace chaski::cuda_model;

extern "C" {

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  return call([&] {
    const auto error = refuse_during_capture();
    return error != cudaSuccess ? error : allocate_device(address, bytes);
  });
}

cudaError_t cudaFree(void* address) {
  return call([&] {
    if (address == nullptr) return cudaSuccess;
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    drain_all();
    return free_device(address);
  });
}

cudaError_t cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t stream) {
  return call([&] {
    if (is_capturing(stream)) fail("allocations in a captured stream are not modelled");
    return allocate_device(address, bytes);
  });
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  return call([&] {
    if (address == nullptr) return cudaSuccess;
    if (is_capturing(stream)) fail("allocations in a captured stream are not modelled");
    const auto region = device_region(address);
    if (!region || region->base != address) return cudaErrorInvalidValue;
    return submit(stream, [address] { free_device(address); });
  });
}

cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  return call([&] { return allocate_pinned(address, bytes); });
}

cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  return call([&] { return allocate_pinned(address, bytes); });
}

cudaError_t cudaFreeHost(void* address) {
  return call([&] {
    if (address == nullptr) return cudaSuccess;
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    if (pinned_regions().erase(address) == 0) return cudaErrorInvalidValue;
    std::free(address);
    return cudaSuccess;
  });
}

cudaError_t cudaHostRegister(void* address, std::size_t bytes, unsigned) {
  return call([&] {
    if (kind_of(address) != MemoryKind::kPageable) return cudaErrorHostMemoryAlreadyRegistered;
    pinned_regions()[address] = {static_cast<unsigned char*>(address), bytes, 0};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* address) {
  return call([&] {
    return pinned_regions().erase(address) == 0 ? cudaErrorHostMemoryNotRegistered : cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  return call([&] {
    const std::size_t occupied = used[current_device()];
    *total_bytes = limit();
    *free_bytes = limit() > occupied ? limit() - occupied : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return call([&] {
    *attributes = {};
    const MemoryKind kind = kind_of(address);
    attributes->type = kind == MemoryKind::kDevice   ? cudaMemoryTypeDevice
                       : kind == MemoryKind::kPinned ? cudaMemoryTypeHost
                                                     : cudaMemoryTypeUnregistered;
    attributes->device =
        kind == MemoryKind::kDevice ? device_region(address)->device : current_device();
    if (kind == MemoryKind::kDevice) attributes->devicePointer = const_cast<void*>(address);
    if (kind == MemoryKind::kPinned) attributes->hostPointer = const_cast<void*>(address);
    return cudaSuccess;
  });
}

cudaError_t cudaMemset(void* address, int value, std::size_t bytes) {
  return call([&] { return set_async(address, value, bytes, nullptr); });
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  return call([&] { return set_async(address, value, bytes, stream); });
}

cudaError_t cudaMemset2DAsync(void* address, std::size_t pitch, int value, std::size_t width,
                              std::size_t height, cudaStream_t stream) {
  return call([&] { return set_rows_async(address, pitch, value, width, height, stream); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return call([&] { return copy_async({to, bytes, from, bytes, bytes, 1, kind}, stream); });
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return call([&] {
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    const auto error = copy_async({to, bytes, from, bytes, bytes, 1, kind}, nullptr);
    return error != cudaSuccess ? error : drain(nullptr);
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return call([&] {
    return copy_async({to, to_pitch, from, from_pitch, width, height, kind}, stream);
  });
}

cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                         std::size_t width, std::size_t height, cudaMemcpyKind kind) {
  return call([&] {
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    const auto error = copy_async({to, to_pitch, from, from_pitch, width, height, kind}, nullptr);
    return error != cudaSuccess ? error : drain(nullptr);
  });
}

}  // extern "C"
