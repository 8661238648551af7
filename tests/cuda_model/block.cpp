#include "tests/cuda_model/block.h"

#include <array>
#include <bit>
#include <cuda_runtime.h>
#include <memory>
#include <numeric>
#include <source_location>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/cuda_model/device_synchronisation.h"
#include "tests/cuda_model/fibers.h"
#include "tests/cuda_model/grid.h"

extern uint3 threadIdx;
extern dim3 blockDim;

namespace chaski::cuda_model {
namespace {

constexpr int kLanes = 32;

enum class State : std::uint8_t { kUnstarted, kRunnable, kAtBarrier, kAtWarpOperation, kEnded };

struct Thread {
  State state;
  uint3 index;
  Fiber* fiber;
  std::source_location site;
  // At a barrier of the block.
  BlockOperation block_operation;
  int predicate;
  // At an operation of the warp.
  WarpOperation warp_operation;
  unsigned mask;
  int source;
  std::uint64_t value;
  std::uint64_t result;
};

const std::function<void()>* body = nullptr;
std::vector<Thread> threads;
std::vector<int> runnable;   // wait for nothing, in no order
std::vector<int> unstarted;  // in no order
int current = -1;
// Lanes of each warp, as masks: those that have not ended, those that wait at a warp operation.
std::vector<unsigned> present, waiting;
int num_at_barrier = 0;
int num_ended = 0;
Fiber host;
std::vector<std::unique_ptr<Fiber>> all_fibers;
std::vector<Fiber*> idle_fibers;

int take(std::vector<int>& from, std::size_t place) {
  const int thread = from[place];
  from[place] = from.back();
  from.pop_back();
  return thread;
}

void become(int thread) {
  current = thread;
  threadIdx = threads[thread].index;
}

std::string place_of(const Thread& thread) {
  std::ostringstream text;
  const std::string_view path = thread.site.file_name();
  text << path.substr(path.rfind('/') + 1) << ':' << thread.site.line();
  return text.str();
}

std::string name(const Thread& thread) {
  std::ostringstream text;
  text << "thread (" << thread.index.x << ", " << thread.index.y << ", " << thread.index.z << ')';
  return text.str();
}

const char* name(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::kSync:
      return "__syncwarp";
    case WarpOperation::kShuffle:
      return "a shuffle";
    case WarpOperation::kBallot:
    case WarpOperation::kAny:
    case WarpOperation::kAll:
      return "a vote";
    case WarpOperation::kMatchAny:
    case WarpOperation::kMatchAll:
      return "a match";
    default:
      return "a reduction of the warp";
  }
}

std::string situation(const Thread& thread) {
  std::ostringstream text;
  if (thread.state == State::kEnded) {
    text << "has ended";
  } else if (thread.state == State::kAtBarrier) {
    text << "waits at __syncthreads of " << place_of(thread);
  } else {
    text << "waits at " << name(thread.warp_operation) << " of " << place_of(thread)
         << " with mask 0x" << std::hex << thread.mask;
  }
  return text.str();
}

/// Nobody can go on: says where the threads are, one line for each situation.
[[noreturn]] void fail_deadlocked() {
  std::vector<std::pair<std::string, std::pair<const Thread*, int>>> groups;
  for (const Thread& thread : threads) {
    const std::string where = situation(thread);
    auto group = groups.begin();
    while (group != groups.end() && group->first != where) ++group;
    if (group == groups.end()) {
      groups.push_back({where, {&thread, 1}});
    } else {
      ++group->second.second;
    }
  }
  std::ostringstream text;
  text << "divergence: the threads of the block wait for each other for ever";
  for (const auto& [where, group] : groups) {
    text << "\n  " << group.second << " thread" << (group.second == 1 ? "" : "s") << ", the first "
         << name(*group.first) << ": " << where;
  }
  fail(text.str());
}

void run_fiber(Fiber* self);

Fiber& idle_fiber() {
  if (idle_fibers.empty()) {
    all_fibers.push_back(std::make_unique<Fiber>(&run_fiber));
    idle_fibers.push_back(all_fibers.back().get());
  }
  Fiber* const fiber = idle_fibers.back();
  idle_fibers.pop_back();
  return *fiber;
}

/// Chooses who runs next among those that can; -1: nobody.
int choose_next() {
  const std::size_t choices = runnable.size() + unstarted.size();
  if (choices == 0) return -1;
  const std::size_t choice = next_random(choices);
  return choice < runnable.size() ? take(runnable, choice)
                                  : take(unstarted, choice - runnable.size());
}

/// Runs threads from their beginnings, one after the other as long as none waits: a kernel without
/// barriers needs one fiber.
void run_fiber(Fiber* self) {
  for (;;) {
    const int thread = self->thread;
    threads[thread].fiber = self;
    threads[thread].state = State::kRunnable;
    become(thread);
    (*body)();
    threads[thread].state = State::kEnded;
    present[thread / kLanes] &= ~(1U << thread % kLanes);
    ++num_ended;
    const int next = choose_next();
    if (next >= 0 && threads[next].state == State::kUnstarted) {
      self->thread = next;
      continue;
    }
    if (next < 0 && num_ended < static_cast<int>(threads.size())) fail_deadlocked();
    idle_fibers.push_back(self);
    Fiber::switch_between(*self, next < 0 ? host : *threads[next].fiber);
  }
}

/// Leaves the running thread, whose state says what it waits for, until it can go on.
void yield() {
  const int self = current;
  const int next = choose_next();
  if (next < 0) fail_deadlocked();
  if (next != self) {
    Fiber* to = threads[next].fiber;
    if (threads[next].state == State::kUnstarted) {
      to = &idle_fiber();
      to->thread = next;
    }
    Fiber::switch_between(*threads[self].fiber, *to);
  }
  become(self);
}

void make_runnable(int thread) {
  threads[thread].state = State::kRunnable;
  runnable.push_back(thread);
}

// The text of a file's name is compared only where one file has several copies of it: this is asked
// for each lane that comes.
bool same_place(const Thread& a, const Thread& b) {
  return a.site.line() == b.site.line() &&
         (a.site.file_name() == b.site.file_name() ||
          std::string_view(a.site.file_name()) == b.site.file_name());
}

void release_barrier() {
  const Thread& first = threads.front();
  int count = 0;
  for (const Thread& thread : threads) {
    if (thread.block_operation != first.block_operation || !same_place(thread, first)) {
      fail("divergence: " + name(first) + " waits at the barrier of " + place_of(first) + ", " +
           name(thread) + " at that of " + place_of(thread));
    }
    count += thread.predicate != 0 ? 1 : 0;
  }
  const auto size = static_cast<int>(threads.size());
  int result = count;
  if (first.block_operation == BlockOperation::kBarrierOr) result = count > 0 ? 1 : 0;
  if (first.block_operation == BlockOperation::kBarrierAnd) result = count == size ? 1 : 0;
  for (int i = 0; i < size; ++i) {
    threads[i].predicate = result;
    make_runnable(i);
  }
  num_at_barrier = 0;
}

std::uint64_t combined(WarpOperation operation, std::uint64_t a, std::uint64_t b) {
  const auto x = static_cast<std::uint32_t>(a);
  const auto y = static_cast<std::uint32_t>(b);
  const auto i = static_cast<std::int32_t>(x);
  const auto j = static_cast<std::int32_t>(y);
  switch (operation) {
    case WarpOperation::kAddUnsigned:
      return x + y;
    case WarpOperation::kMinUnsigned:
      return x < y ? x : y;
    case WarpOperation::kMaxUnsigned:
      return x > y ? x : y;
    case WarpOperation::kMinSigned:
      return i < j ? x : y;
    case WarpOperation::kMaxSigned:
      return i > j ? x : y;
    case WarpOperation::kAnd:
      return x & y;
    case WarpOperation::kOr:
      return x | y;
    default:
      return x ^ y;
  }
}

std::uint64_t warp_result(const Thread* warp, int lane) {
  const Thread& own = warp[lane];
  const unsigned mask = own.mask;
  unsigned set = 0;       // lanes whose value is not zero
  unsigned matching = 0;  // lanes with the same value as this one
  std::uint64_t reduced = 0;
  bool first = true;
  for (int other = 0; other < kLanes; ++other) {
    if ((mask >> other & 1U) == 0) continue;
    const std::uint64_t value = warp[other].value;
    if (value != 0) set |= 1U << other;
    if (value == own.value) matching |= 1U << other;
    reduced = first ? value : combined(own.warp_operation, reduced, value);
    first = false;
  }
  switch (own.warp_operation) {
    case WarpOperation::kSync:
      return 0;
    case WarpOperation::kBallot:
      return set;
    case WarpOperation::kAny:
      return set != 0 ? 1 : 0;
    case WarpOperation::kAll:
      return set == mask ? 1 : 0;
    case WarpOperation::kMatchAny:
      return matching;
    case WarpOperation::kMatchAll:
      return matching == mask ? mask : 0;
    default:
      return reduced;
  }
}

bool same_operation(const Thread& a, const Thread& b) {
  return a.warp_operation == b.warp_operation && a.mask == b.mask && same_place(a, b);
}

/// Gives the lanes of the running thread's mask their results if all of them have come.
void release_warp() {
  const int base = current / kLanes * kLanes;
  const unsigned mask = threads[current].mask;
  if ((mask & ~waiting[base / kLanes]) != 0) return;
  Thread* const warp = &threads[base];
  for (int i = 0; i < kLanes; ++i) {
    if ((mask >> i & 1U) != 0 && !same_operation(threads[current], warp[i])) return;
  }
  std::array<std::uint64_t, kLanes> results{};
  for (int i = 0; i < kLanes; ++i) {
    if ((mask >> i & 1U) == 0) continue;
    results[i] = warp[i].warp_operation == WarpOperation::kShuffle ? warp[warp[i].source].value
                                                                   : warp_result(warp, i);
  }
  for (int i = 0; i < kLanes; ++i) {
    if ((mask >> i & 1U) == 0) continue;
    warp[i].result = results[i];
    make_runnable(base + i);
  }
  waiting[base / kLanes] &= ~mask;
}

void check_in_kernel(const char* what) {
  if (current < 0) fail(std::string(what) + " outside of a kernel");
}

}  // namespace

int lane() {
  check_in_kernel("a warp operation");
  return current % kLanes;
}

int block_barrier(BlockOperation operation, int predicate, const std::source_location& site) {
  check_in_kernel("__syncthreads");
  Thread& self = threads[current];
  self.state = State::kAtBarrier;
  self.block_operation = operation;
  self.predicate = predicate;
  self.site = site;
  if (++num_at_barrier == static_cast<int>(threads.size())) release_barrier();
  yield();
  return self.predicate;
}

std::uint64_t warp_exchange(WarpOperation operation, unsigned mask, std::uint64_t value, int source,
                            const std::source_location& site) {
  check_in_kernel("a warp operation");
  Thread& self = threads[current];
  self.site = site;
  self.warp_operation = operation;
  self.mask = mask;
  self.value = value;
  self.source = source;
  const int base = current / kLanes * kLanes;
  if ((mask >> (current - base) & 1U) == 0) {
    fail("the thread's own lane is not in the mask of " + place_of(self));
  }
  if (const unsigned absent = mask & ~present[base / kLanes]; absent != 0) {
    const int other = std::countr_zero(absent);
    const bool exists = base + other < static_cast<int>(threads.size());
    fail("the mask of " + std::string(name(operation)) + " of " + place_of(self) + " names lane " +
         std::to_string(other) + ", which " + (exists ? "has ended" : "the block does not have"));
  }
  if (operation == WarpOperation::kShuffle && (mask >> source & 1U) == 0) {
    fail("the shuffle of " + place_of(self) + " reads lane " + std::to_string(source) +
         ", which is not in its mask");
  }
  self.state = State::kAtWarpOperation;
  waiting[base / kLanes] |= 1U << (current - base);
  release_warp();
  yield();
  return self.result;
}

void run_block(const std::function<void()>& thread) {
  const int size = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  body = &thread;
  threads.assign(size, Thread{});
  unstarted.resize(size);
  std::iota(unstarted.begin(), unstarted.end(), 0);
  runnable.clear();
  waiting.assign((size + kLanes - 1) / kLanes, 0);
  present.assign(waiting.size(), ~0U);
  if (size % kLanes != 0) present.back() = (1U << size % kLanes) - 1;
  num_at_barrier = 0;
  num_ended = 0;
  for (int i = 0; i < size; ++i) {
    threads[i].index = {static_cast<unsigned>(i) % blockDim.x,
                        static_cast<unsigned>(i) / blockDim.x % blockDim.y,
                        static_cast<unsigned>(i) / (blockDim.x * blockDim.y)};
  }
  Fiber& fiber = idle_fiber();
  fiber.thread = take(unstarted, next_random(unstarted.size()));
  Fiber::switch_between(host, fiber);
  current = -1;
}

std::uint64_t fiber_switches() {
  return Fiber::switch_count();
}

}  // namespace chaski::cuda_model
