#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cuda_runtime_api.h>
#include <deque>
#include <set>
#include <string>
#include <thread>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/runtime.h"

using chaski::cuda_model::Capture;
using chaski::cuda_model::Mark;

using Clock = std::chrono::steady_clock;

/// An operation of a graph and those that must have run before it.
struct Node {
  std::function<void()> work;
  std::vector<int> after;
};

struct CUgraph_st {
  std::vector<Node> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Node>> nodes;
};

struct CUstream_st {
  bool blocking = true;  // ordered with the default stream
  std::deque<std::function<void()>> queue;
  std::shared_ptr<Capture> capture;
  std::vector<int> frontier;  // what the next captured operation follows
  bool destroyed = false;
};

struct CUevent_st {
  std::shared_ptr<Mark> mark;
  bool timed = true;
};

namespace chaski::cuda_model {

class Capture {
 public:
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id owner;
  std::set<cudaStream_t> streams;
  std::vector<Node> nodes;
  bool spoilt = false;
};

class Mark {
 public:
  cudaStream_t stream = nullptr;
  bool reached = false;
  bool asked = false;  // a query has answered "not yet"
  Clock::time_point time;
  std::shared_ptr<Capture> capture;  // recorded while captured
  std::vector<int> frontier;
};

namespace {

std::set<cudaStream_t>& streams() {
  static auto* const all = new std::set<cudaStream_t>;
  return *all;
}

std::set<std::shared_ptr<Capture>>& captures() {
  static auto* const all = new std::set<std::shared_ptr<Capture>>;
  return *all;
}

bool& lazy_mode() {
  static bool lazy = [] {
    const char* const text = std::getenv("CHASKI_CUDA_MODEL_LAZY");
    return text == nullptr || std::string(text) != "0";
  }();
  return lazy;
}

cudaStream_t default_stream() {
  static auto* const stream = new CUstream_st;
  streams().insert(stream);
  return stream;
}

/// The stream of a handle; the program ends if there is none.
cudaStream_t resolve(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return default_stream();
  if (handle == cudaStreamPerThread) fail("the per-thread default stream is not modelled");
  if (streams().count(handle) == 0) fail("a stream that does not exist (any more) is used");
  return handle;
}

void run_first(cudaStream_t stream) {
  auto work = std::move(stream->queue.front());
  stream->queue.pop_front();
  work();
}

void run_all(cudaStream_t stream) {
  while (!stream->queue.empty()) run_first(stream);
}

void run_until(const std::shared_ptr<Mark>& mark) {
  while (!mark->reached && !mark->stream->queue.empty()) run_first(mark->stream);
}

cudaError_t spoil(const std::shared_ptr<Capture>& capture, cudaError_t error) {
  capture->spoilt = true;
  return error;
}

void add_dependencies(cudaStream_t stream, const std::vector<int>& nodes) {
  for (const int node : nodes) {
    auto& frontier = stream->frontier;
    if (std::find(frontier.begin(), frontier.end(), node) == frontier.end()) {
      frontier.push_back(node);
    }
  }
}

/// Runs the nodes in a random one of the orders that their dependencies allow.
void replay(const std::vector<Node>& nodes) {
  std::vector<int> missing(nodes.size());
  std::vector<std::vector<int>> followers(nodes.size());
  std::vector<int> ready;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    missing[i] = static_cast<int>(nodes[i].after.size());
    for (const int before : nodes[i].after) followers[before].push_back(static_cast<int>(i));
    if (missing[i] == 0) ready.push_back(static_cast<int>(i));
  }
  while (!ready.empty()) {
    std::swap(ready[next_random(ready.size())], ready.back());
    const int node = ready.back();
    ready.pop_back();
    nodes[node].work();
    for (const int follower : followers[node]) {
      if (--missing[follower] == 0) ready.push_back(follower);
    }
  }
}

/// True if the origin stream waits, directly or not, for all that was captured.
bool joined(const Capture& capture) {
  std::vector<bool> reached(capture.nodes.size(), false);
  std::vector<int> open = capture.origin->frontier;
  while (!open.empty()) {
    const int node = open.back();
    open.pop_back();
    if (reached[node]) continue;
    reached[node] = true;
    open.insert(open.end(), capture.nodes[node].after.begin(), capture.nodes[node].after.end());
  }
  return std::find(reached.begin(), reached.end(), false) == reached.end();
}

cudaError_t record(cudaEvent_t event, cudaStream_t handle) {
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  const cudaStream_t stream = resolve(handle);
  auto mark = std::make_shared<Mark>();
  mark->stream = stream;
  event->mark = mark;
  if (stream->capture) {
    mark->capture = stream->capture;
    mark->frontier = stream->frontier;
    return cudaSuccess;
  }
  return submit(handle, [mark] {
    mark->reached = true;
    mark->time = Clock::now();
  });
}

cudaError_t wait(cudaStream_t handle, cudaEvent_t event) {
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  const cudaStream_t stream = resolve(handle);
  const auto mark = event->mark;
  if (!mark) return cudaSuccess;  // never recorded
  if (mark->capture) {
    if (captures().count(mark->capture) == 0) return cudaErrorCapturedEvent;
    if (stream->capture && stream->capture != mark->capture) {
      mark->capture->spoilt = true;
      return spoil(stream->capture, cudaErrorStreamCaptureMerge);
    }
    if (!stream->capture) {
      stream->capture = mark->capture;
      stream->frontier.clear();
      mark->capture->streams.insert(stream);
    }
    add_dependencies(stream, mark->frontier);
    return cudaSuccess;
  }
  if (stream->capture) return spoil(stream->capture, cudaErrorStreamCaptureIsolation);
  return submit(handle, [mark] { run_until(mark); });
}

/// Of a query: the first one about pending work answers "not yet", the next one lets it happen.
cudaError_t not_ready_once(bool& asked) {
  if (!asked && lazy_mode()) {
    asked = true;
    return cudaErrorNotReady;
  }
  return cudaSuccess;
}

}  // namespace

void set_lazy(bool lazy) {
  const std::lock_guard lock(api_mutex());
  drain_all();
  lazy_mode() = lazy;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  return call([&] { return submit(stream, std::move(work)); });
}

cudaError_t submit(cudaStream_t handle, std::function<void()> work) {
  const cudaStream_t stream = resolve(handle);
  if (stream->capture) {
    auto& nodes = stream->capture->nodes;
    nodes.push_back({std::move(work), stream->frontier});
    stream->frontier = {static_cast<int>(nodes.size()) - 1};
    return cudaSuccess;
  }
  const cudaStream_t legacy = default_stream();
  if (stream == legacy) {
    for (const cudaStream_t other : streams()) {
      if (!other->blocking || other == legacy) continue;
      if (other->capture) return spoil(other->capture, cudaErrorStreamCaptureImplicit);
      run_all(other);
    }
  } else if (stream->blocking) {
    run_all(legacy);
  }
  stream->queue.push_back(std::move(work));
  if (!lazy_mode()) run_all(stream);
  return cudaSuccess;
}

cudaError_t drain(cudaStream_t handle) {
  const cudaStream_t stream = resolve(handle);
  if (stream->capture) return spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
  run_all(stream);
  return cudaSuccess;
}

void drain_all() {
  // Snapshot in a random order: streams that nothing orders have none.
  std::vector<cudaStream_t> all(streams().begin(), streams().end());
  for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[next_random(i)]);
  for (const cudaStream_t stream : all) run_all(stream);
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
    run_all(stream);
    streams().erase(stream);
    delete stream;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&] {
    if (resolve(stream) == default_stream()) {
      if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
      for (const cudaStream_t other : streams()) {
        if (other->blocking) run_all(other);
      }
    }
    return drain(stream);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call([&] { return wait(stream, event); });
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

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call([&] {
    *event = new CUevent_st;
    (*event)->timed = (flags & cudaEventDisableTiming) == 0;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&] {
    delete event;
    return event == nullptr ? cudaErrorInvalidResourceHandle : cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&] { return record(event, stream); });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return call([&] { return record(event, stream); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    if (!event->mark) return cudaSuccess;
    if (event->mark->capture) return spoil(event->mark->capture, cudaErrorCapturedEvent);
    run_until(event->mark);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(api_mutex());
  if (event == nullptr) return remembered(cudaErrorInvalidResourceHandle);
  const auto mark = event->mark;
  if (!mark || mark->reached) return cudaSuccess;
  if (mark->capture) return remembered(spoil(mark->capture, cudaErrorCapturedEvent));
  const cudaError_t answer = not_ready_once(mark->asked);
  if (answer == cudaSuccess) run_until(mark);
  return answer;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call([&] {
    if (start == nullptr || end == nullptr || !start->mark || !end->mark || !start->timed ||
        !end->timed) {
      return cudaErrorInvalidResourceHandle;
    }
    if (!start->mark->reached || !end->mark->reached) return cudaErrorNotReady;
    *milliseconds =
        std::chrono::duration<float, std::milli>(end->mark->time - start->mark->time).count();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call([&] {
    const auto capture = resolve(stream)->capture;
    *status = !capture          ? cudaStreamCaptureStatusNone
              : capture->spoilt ? cudaStreamCaptureStatusInvalidated
                                : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return call([&] {
    const cudaStream_t stream = resolve(handle);
    if (stream == default_stream()) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture) return cudaErrorIllegalState;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream;
    capture->mode = mode;
    capture->owner = std::this_thread::get_id();
    capture->streams.insert(stream);
    stream->capture = capture;
    stream->frontier.clear();
    captures().insert(capture);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return call([&] {
    *graph = nullptr;
    const auto capture = resolve(handle)->capture;
    if (!capture) return cudaErrorIllegalState;
    if (capture->origin != handle) return spoil(capture, cudaErrorStreamCaptureUnmatched);
    const bool whole = joined(*capture);
    for (const cudaStream_t stream : capture->streams) {
      stream->capture.reset();
      stream->frontier.clear();
    }
    captures().erase(capture);
    if (capture->spoilt) return cudaErrorStreamCaptureInvalidated;
    if (!whole) return cudaErrorStreamCaptureUnjoined;
    *graph = new CUgraph_st{std::move(capture->nodes)};
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  return call([&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *executable = new CUgraphExec_st{std::make_shared<const std::vector<Node>>(graph->nodes)};
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  return call([&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    if (nodes != nullptr) fail("nodes of graphs are not modelled, only their number");
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call([&] {
    if (executable == nullptr) return cudaErrorInvalidValue;
    return submit(stream, [nodes = executable->nodes] { replay(*nodes); });
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return call([&] {
    delete executable;
    return executable == nullptr ? cudaErrorInvalidValue : cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&] {
    delete graph;
    return graph == nullptr ? cudaErrorInvalidValue : cudaSuccess;
  });
}

}  // extern "C"
