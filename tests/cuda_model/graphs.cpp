#include <algorithm>
#include <cuda_runtime_api.h>
#include <memory>
#include <utility>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/runtime.h"
#include "tests/cuda_model/stream_state.h"

struct CUgraph_st {
  std::vector<chaski::cuda_model::Node> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<chaski::cuda_model::Node>> nodes;
};

namespace chaski::cuda_model {
namespace {

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

}  // namespace
}  // namespace chaski::cuda_model

using namespace chaski::cuda_model;

extern "C" {

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
    count_graph();
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
