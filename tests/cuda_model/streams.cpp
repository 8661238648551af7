#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cuda_runtime_api.h>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/device_memory.h"
#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/runtime.h"
#include "tests/cuda_model/stream_state.h"

namespace chaski::cuda_model {
namespace {

enum class Pace { kEager, kLazy, kRandom };

Pace& pace() {
  static Pace chosen = [] {
    const char* const text = std::getenv("CHASKI_CUDA_MODEL_LAZY");
    const std::string value = text == nullptr ? "1" : text;
    return value == "0" ? Pace::kEager : value == "2" ? Pace::kRandom : Pace::kLazy;
  }();
  return chosen;
}

bool run_first(cudaStream_t stream) {
  if (const Work& first = stream->queue.front(); first.ready && !first.ready()) return false;
  const Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (work.run) work.run();
  return true;
}

/// Which stream runs at random pace, and for how many more moments.
cudaStream_t fast = nullptr;
std::uint64_t moments = 0;
constexpr std::uint64_t kMostMoments = 40;

/// How long nobody must have called CUDA before streams go on by themselves.
constexpr std::chrono::milliseconds kPatience{20};

std::atomic<std::uint64_t> num_calls{0};

bool has_external(cudaStream_t stream) {
  return std::any_of(stream->queue.begin(), stream->queue.end(),
                     [](const Work& work) { return work.external; });
}

}  // namespace

std::set<cudaStream_t>& streams() {
  static auto* const all = new std::set<cudaStream_t>;
  return *all;
}

std::set<std::shared_ptr<Capture>>& captures() {
  static auto* const all = new std::set<std::shared_ptr<Capture>>;
  return *all;
}

cudaStream_t default_stream() {
  static auto* const stream = new CUstream_st;
  streams().insert(stream);
  return stream;
}

cudaStream_t resolve(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return default_stream();
  if (handle == cudaStreamPerThread) fail("the per-thread default stream is not modelled");
  if (streams().count(handle) == 0) fail("a stream that does not exist (any more) is used");
  return handle;
}

bool run_all(cudaStream_t stream) {
  if (stream->queue.empty()) return true;
  const DeviceAccess access;
  while (!stream->queue.empty()) {
    if (!run_first(stream)) return false;
  }
  return true;
}

bool run_until(const std::shared_ptr<Mark>& mark) {
  if (mark->reached) return true;
  const DeviceAccess access;
  while (!mark->reached && !mark->stream->queue.empty()) {
    if (!run_first(mark->stream)) return false;
  }
  return true;
}

void serve_other_processes() {
  for (const cudaStream_t stream : streams()) {
    if (stream->capture || !has_external(stream)) continue;
    const DeviceAccess access;
    while (has_external(stream) && run_first(stream)) {
    }
  }
}

void let_streams_get_ahead() {
  if (pace() != Pace::kRandom) return;
  if (moments == 0 || streams().count(fast) == 0) {
    auto stream = streams().begin();
    std::advance(stream, static_cast<std::ptrdiff_t>(next_random(streams().size())));
    fast = *stream;
    moments = 1 + next_random(kMostMoments);
  }
  --moments;
  run_all(fast);
}

void wait_for(const std::function<bool()>& attempt) {
  while (!attempt()) {
    serve_other_processes();
    api_mutex().unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    api_mutex().lock();
  }
}

void count_call() {
  ++num_calls;
}

void work_without_host() {
  static const bool started = [] {
    std::thread([] {
      while (true) {
        const std::uint64_t before = num_calls;
        std::this_thread::sleep_for(kPatience);
        const std::lock_guard lock(api_mutex());
        if (num_calls == before) serve_other_processes();
      }
    }).detach();
    return true;
  }();
  static_cast<void>(started);
}

cudaError_t spoil(const std::shared_ptr<Capture>& capture, cudaError_t error) {
  capture->spoilt = true;
  return error;
}

void set_lazy(bool lazy) {
  const std::lock_guard lock(api_mutex());
  drain_all();
  pace() = lazy ? Pace::kLazy : Pace::kEager;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  return call([&] { return submit(stream, std::move(work)); });
}

cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
  return submit_work(stream, {std::move(work), {}});
}

void submit_external(cudaStream_t stream, std::function<bool()> attempt) {
  if (pace() == Pace::kRandom && next_random(2) == 0) {
    fast = resolve(stream);
    moments = 1 + next_random(kMostMoments);
  }
  submit_work(stream, {{}, std::move(attempt), true});
}

cudaError_t submit_work(cudaStream_t handle, Work work) {
  const cudaStream_t stream = resolve(handle);
  if (stream->capture) {
    if (work.external) fail("work for other processes in a captured stream is not modelled");
    auto& nodes = stream->capture->nodes;
    nodes.push_back({std::move(work.run), stream->frontier});
    stream->frontier = {static_cast<int>(nodes.size()) - 1};
    return cudaSuccess;
  }
  const cudaStream_t legacy = default_stream();
  if (stream == legacy) {
    for (const cudaStream_t other : streams()) {
      if (!other->blocking || other == legacy) continue;
      if (other->capture) return spoil(other->capture, cudaErrorStreamCaptureImplicit);
      wait_for([other] { return run_all(other); });
    }
  } else if (stream->blocking) {
    wait_for([legacy] { return run_all(legacy); });
  }
  stream->queue.push_back(std::move(work));
  if (pace() == Pace::kEager) run_all(stream);
  let_streams_get_ahead();
  return cudaSuccess;
}

cudaError_t drain(cudaStream_t handle) {
  const cudaStream_t stream = resolve(handle);
  if (stream->capture) return spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
  wait_for([stream] { return run_all(stream); });
  return cudaSuccess;
}

void drain_all() {
  wait_for([] {
    // In a random order: nothing orders streams but events.
    std::vector<cudaStream_t> all(streams().begin(), streams().end());
    for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[next_random(i)]);
    for (const cudaStream_t stream : all) run_all(stream);
    return std::all_of(streams().begin(), streams().end(),
                       [](cudaStream_t stream) { return stream->queue.empty(); });
  });
}

bool is_capturing(cudaStream_t stream) {
  return resolve(stream)->capture != nullptr;
}

cudaError_t refuse_during_capture() {
  for (const auto& capture : captures()) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal &&
        capture->owner != std::this_thread::get_id()) {
      continue;
    }
    return spoil(capture, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

}  // namespace chaski::cuda_model

using namespace chaski::cuda_model;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call([&] {
    *stream = new CUstream_st;
    (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
    streams().insert(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return call([&] {
    if (handle == nullptr) return cudaErrorInvalidResourceHandle;
    const cudaStream_t stream = resolve(handle);
    if (!run_all(stream)) fail("a stream is destroyed while its work waits for other processes");
    streams().erase(stream);
    delete stream;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&] {
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    if (resolve(stream) == default_stream()) {
      for (const cudaStream_t other : streams()) {
        if (other->blocking) wait_for([other] { return run_all(other); });
      }
    }
    return drain(stream);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return call([&] {
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    const cudaStream_t stream = resolve(handle);
    if (stream->queue.empty()) return cudaSuccess;
    stream->asked = !stream->asked;
    if (stream->asked) return cudaErrorNotReady;
    if (stream->capture) return spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
    if (run_all(stream)) return cudaSuccess;
    serve_other_processes();
    return cudaErrorNotReady;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call([&] { return submit(stream, [function, data] { function(data); }); });
}

cudaError_t cudaDeviceSynchronize(void) {
  return call([] {
    const auto error = refuse_during_capture();
    if (error == cudaSuccess) drain_all();
    return error;
  });
}

}  // extern "C"
