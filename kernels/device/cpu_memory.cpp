#include "kernels/device/cpu_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace chaski {
namespace {

constexpr std::size_t kSmallAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__SANITIZE_ADDRESS__)
// From the heap, so that the sanitizer sees an access outside an allocation; not what is so large
// that the sanitizer's heap would abort instead of returning null.
constexpr std::size_t kMapFrom = std::size_t{1} << 32;
#else
constexpr std::size_t kMapFrom = kHugePage;
#endif

void* map_huge_aligned(std::size_t bytes) {
  const std::size_t mapped = bytes + kHugePage;
  if (mapped < bytes) return nullptr;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<std::uintptr_t>(base);
  const std::uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t end = (aligned + bytes + page - 1) / page * page;
  if (aligned > begin) munmap(base, aligned - begin);
  if (begin + mapped > end) munmap(reinterpret_cast<void*>(end), begin + mapped - end);
  auto* data = reinterpret_cast<void*>(aligned);
  madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

}  // namespace

void* allocate_cpu_memory(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  if (size >= kMapFrom) return map_huge_aligned(size);
  void* data = std::aligned_alloc(kSmallAlignment, size);
  if (data != nullptr) std::memset(data, 0, size);
  return data;
}

void free_cpu_memory(void* data, std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  if (size >= kMapFrom) {
    munmap(data, size);
  } else {
    std::free(data);
  }
}

}  // namespace chaski
