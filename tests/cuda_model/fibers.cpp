#include "tests/cuda_model/fibers.h"

#include <cstring>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(CHASKI_CUDA_MODEL_SANITIZED)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace chaski::cuda_model {
namespace {

// Sanitizers' frames are large, and a report is written on the stack of the thread that failed.
constexpr std::size_t kStackBytes = std::size_t{256} * 1024;
// A block's stacks begin at different places of their pages, else the same few lines of the cache
// would be all threads'.
constexpr std::size_t kStagger = 13 * 64;
constexpr std::size_t kStaggerPeriod = 4096;

Fiber* left = nullptr;      // the one that was switched away from last
Fiber* entering = nullptr;  // the one that is switched to
std::uint64_t switches = 0;

}  // namespace

#if defined(__x86_64__)

// Saves what a called function must keep, exchanges the stacks: no system call, unlike swapcontext.
extern "C" void chaski_cuda_model_switch(void** save, void* load);
asm(R"(
.text
.globl chaski_cuda_model_switch
.type chaski_cuda_model_switch,@function
chaski_cuda_model_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size chaski_cuda_model_switch,.-chaski_cuda_model_switch
)");

#endif

Fiber::Fiber(void (*entry)(Fiber*)) : entry_(entry) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  mapping_ = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);
  auto* const bottom = static_cast<unsigned char*>(mapping_) + page;
  static std::size_t count = 0;
  stack_bottom_ = bottom;
  stack_size_ = kStackBytes - (count++ * kStagger) % kStaggerPeriod;
#if defined(__x86_64__)
  // As the switch leaves it: six registers, the address to return to, and above it the place of a
  // caller's return address, which also aligns the stack as after a call.
  auto** top = reinterpret_cast<void**>(bottom + stack_size_);
  top -= 8;
  std::memset(top, 0, 8 * sizeof(void*));
  top[6] = reinterpret_cast<void*>(&Fiber::start);
  stack_pointer_ = top;
#else
  auto* const context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = bottom;
  context->uc_stack.ss_size = stack_size_;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::start, 0);
  stack_pointer_ = context;
#endif
}

Fiber::~Fiber() {
#if !defined(__x86_64__)
  delete static_cast<ucontext_t*>(stack_pointer_);
#endif
  if (mapping_ != nullptr) {
    munmap(mapping_, kStackBytes + static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  }
}

std::uint64_t Fiber::switch_count() {
  return switches;
}

void Fiber::arrive([[maybe_unused]] Fiber* self) {
#if defined(__SANITIZE_ADDRESS__) || defined(CHASKI_CUDA_MODEL_SANITIZED)
  __sanitizer_finish_switch_fiber(self->fake_stack_, &left->stack_bottom_, &left->stack_size_);
#endif
}

void Fiber::start() {
  Fiber* const self = entering;
  arrive(self);
  self->entry_(self);
  __builtin_unreachable();
}

void Fiber::switch_between(Fiber& from, Fiber& to) {
  ++switches;
  left = &from;
  entering = &to;
#if defined(__SANITIZE_ADDRESS__) || defined(CHASKI_CUDA_MODEL_SANITIZED)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_bottom_, to.stack_size_);
#endif
#if defined(__x86_64__)
  chaski_cuda_model_switch(&from.stack_pointer_, to.stack_pointer_);
#else
  if (from.stack_pointer_ == nullptr) from.stack_pointer_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.stack_pointer_),
              static_cast<ucontext_t*>(to.stack_pointer_));
#endif
  arrive(&from);
}

}  // namespace chaski::cuda_model
