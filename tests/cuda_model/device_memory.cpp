#include "tests/cuda_model/device_memory.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <signal.h>
#include <string>
#include <sys/mman.h>

#include "tests/cuda_model/grid.h"

#if defined(__SANITIZE_ADDRESS__) || defined(CHASKI_CUDA_MODEL_SANITIZED)
#include <sanitizer/asan_interface.h>
#define CHASKI_CUDA_MODEL_POISON(memory, bytes) __asan_poison_memory_region(memory, bytes)
#define CHASKI_CUDA_MODEL_UNPOISON(memory, bytes) __asan_unpoison_memory_region(memory, bytes)
#else
#define CHASKI_CUDA_MODEL_POISON(memory, bytes) static_cast<void>(0)
#define CHASKI_CUDA_MODEL_UNPOISON(memory, bytes) static_cast<void>(0)
#endif

namespace chaski::cuda_model {
namespace {

constexpr std::size_t kReserved = std::size_t{256} << 30;   // addresses, not memory
constexpr std::size_t kFreshBefore = std::size_t{1} << 30;  // handed out before any is reused
constexpr std::size_t kAlignment = 256;
constexpr std::size_t kGap = 256;
constexpr std::size_t kPage = 4096;  // at least: systems with larger pages protect none

std::size_t rounded_up(std::size_t bytes, std::size_t to) {
  return (bytes + to - 1) / to * to;
}

class Heap {
 public:
  Heap() {
    void* const memory =
        mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no addresses for device memory");
    base_ = static_cast<unsigned char*>(memory);
    // Fewer pages to protect each time; a matter of speed only.
    madvise(memory, kReserved, MADV_HUGEPAGE);
    const char* const text = std::getenv("CHASKI_CUDA_MODEL_PROTECT");
    protects_ = text == nullptr || std::string(text) != "0";
    extend(kGap);
    CHASKI_CUDA_MODEL_POISON(base_, kGap);
  }

  unsigned char* take(std::size_t bytes) {
    const std::size_t whole = rounded_up(bytes, kAlignment) + kGap;
    unsigned char* memory = nullptr;
    const auto reusable = end_ > kFreshBefore ? free_.lower_bound(whole) : free_.end();
    if (reusable != free_.end() && reusable->first <= whole + whole / 4) {
      memory = reusable->second;
      sizes_[memory] = reusable->first;
      free_.erase(reusable);
    } else {
      if (whole > kReserved - end_) return nullptr;
      memory = base_ + end_;
      extend(whole);
      sizes_[memory] = whole;
    }
    CHASKI_CUDA_MODEL_UNPOISON(memory, bytes);
    CHASKI_CUDA_MODEL_POISON(memory + bytes, sizes_[memory] - bytes);
    const DeviceAccess access;
    std::memset(memory, 0xff, bytes);
    return memory;
  }

  void give_back(unsigned char* memory, [[maybe_unused]] std::size_t bytes) {
    const auto found = sizes_.find(memory);
    const std::size_t whole = found->second;
    sizes_.erase(found);
    free_.emplace(whole, memory);
    CHASKI_CUDA_MODEL_POISON(memory, bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t first = rounded_up(address, kPage);
    const std::uintptr_t last = (address + whole) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }

  void open() {
    if (users_++ == 0 && protects_) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    if (--users_ == 0 && protects_) protect(PROT_NONE);
  }
  bool contains(const void* address) const {
    const auto* const byte = static_cast<const unsigned char*>(address);
    return byte >= base_ && byte < base_ + end_;
  }
  bool is_open() const { return users_ > 0; }

 private:
  void extend(std::size_t bytes) {
    const std::size_t old_pages = rounded_up(end_, kPage);
    end_ += bytes;
    const std::size_t pages = rounded_up(end_, kPage);
    const bool accessible = users_ > 0 || !protects_;
    if (accessible && pages > old_pages &&
        mprotect(base_ + old_pages, pages - old_pages, PROT_READ | PROT_WRITE) != 0) {
      fail("device memory cannot be made accessible");
    }
  }
  void protect(int protection) {
    if (mprotect(base_, rounded_up(end_, kPage), protection) != 0) {
      fail("the protection of device memory cannot be changed");
    }
  }

  unsigned char* base_ = nullptr;
  std::size_t end_ = 0;
  int users_ = 0;
  bool protects_ = true;
  std::multimap<std::size_t, unsigned char*> free_;
  std::map<unsigned char*, std::size_t> sizes_;
};

Heap* existing = nullptr;
struct sigaction previous_handler;

/// Says what a crash at an address of the device means, then lets AddressSanitizer report it.
void explain_crash(int signal, siginfo_t* info, void* context) {
  if (!existing->is_open() && existing->contains(info->si_addr)) {
    std::fprintf(stderr, "chaski: CUDA model: the host touches device memory at %p\n",
                 info->si_addr);
  }
  sigaction(SIGSEGV, &previous_handler, nullptr);
  if ((previous_handler.sa_flags & SA_SIGINFO) != 0) {
    previous_handler.sa_sigaction(signal, info, context);
  }
}

/// Never destroyed: memory may be freed at the very end.
Heap& heap() {
  static Heap& instance = []() -> Heap& {
    existing = new Heap;
    struct sigaction handler = {};
    handler.sa_sigaction = &explain_crash;
    handler.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &handler, &previous_handler);
    return *existing;
  }();
  return instance;
}

}  // namespace

unsigned char* take_device_memory(std::size_t bytes) {
  return heap().take(bytes);
}

void return_device_memory(unsigned char* memory, std::size_t bytes) {
  heap().give_back(memory, bytes);
}

DeviceAccess::DeviceAccess() {
  heap().open();
}
DeviceAccess::~DeviceAccess() {
  heap().close();
}

}  // namespace chaski::cuda_model
