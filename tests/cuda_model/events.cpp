#include <algorithm>
#include <chrono>
#include <cuda_runtime_api.h>
#include <utility>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/runtime.h"
#include "tests/cuda_model/stream_state.h"

namespace chaski::cuda_model {
namespace {

void add_dependencies(cudaStream_t stream, const std::vector<int>& nodes) {
  for (const int node : nodes) {
    auto& frontier = stream->frontier;
    if (std::find(frontier.begin(), frontier.end(), node) == frontier.end()) {
      frontier.push_back(node);
    }
  }
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
    mark->time = std::chrono::steady_clock::now();
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
  return submit_work(handle, {{}, [mark] { return run_until(mark); }});
}

}  // namespace
}  // namespace chaski::cuda_model

using namespace chaski::cuda_model;

extern "C" {

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call([&] { return wait(stream, event); });
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
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    wait_for([mark = event->mark] { return run_until(mark); });
    return cudaSuccess;
  });
}

/// The first query about pending work answers "not yet", the next one lets it happen.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    const auto mark = event->mark;
    if (!mark) return cudaSuccess;
    if (mark->capture) return spoil(mark->capture, cudaErrorCapturedEvent);
    if (const auto error = refuse_during_capture(); error != cudaSuccess) return error;
    if (mark->reached) return cudaSuccess;
    if (!std::exchange(mark->asked, true)) return cudaErrorNotReady;
    if (run_until(mark)) return cudaSuccess;
    serve_other_processes();
    return cudaErrorNotReady;
  });
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

}  // extern "C"
