#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <functional>
#include <gtest/gtest.h>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/device_objects.h"
#include "tests/cuda_model/test_kernels.h"

// Captured streams and their replay.
namespace chaski::cuda_model::test {
namespace {

constexpr int kCount = 50;
constexpr std::size_t kBytes = kCount * sizeof(float);

/// Captures what `work` gives the stream; the graph, null if that failed with `expected`.
template <typename Work>
cudaGraphExec_t captured(cudaStream_t stream, Work work, cudaError_t expected = cudaSuccess) {
  EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  work();
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), expected);
  cudaGetLastError();
  if (expected != cudaSuccess) return nullptr;
  cudaGraphExec_t executable = nullptr;
  EXPECT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  return executable;
}

TEST(Graphs, RunNothingWhenCapturedAndAllWhenReplayed) {
  const Stream stream;
  const DeviceArray<float> sum(std::vector<float>(kCount, 0.0F));
  const DeviceArray<float> step(kCount);
  const auto graph = captured(stream, [&] {
    EXPECT_EQ(fill(stream, step, 2.0F, kCount), cudaSuccess);
    EXPECT_EQ(accumulate(stream, sum, step, kCount), cudaSuccess);
  });
  stream.synchronize();
  EXPECT_EQ(sum.values()[0], 0.0F);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(graph, stream), cudaSuccess);
  stream.synchronize();
  EXPECT_EQ(sum.values(), std::vector<float>(kCount, 6.0F));
  EXPECT_EQ(cudaGraphExecDestroy(graph), cudaSuccess);
}

TEST(Graphs, MissingDependencyBetweenCapturedStreamsShows) {
  for (const bool waits : {true, false}) {
    int wrong = 0;
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      set_seed(seed);
      const Stream stream;
      const Stream side;
      const Event forked;
      const Event produced;
      const Event done;
      const DeviceArray<float> sum(std::vector<float>(kCount, 0.0F));
      const DeviceArray<float> step(kCount);
      const auto graph = captured(stream, [&] {
        EXPECT_EQ(cudaEventRecord(forked, stream), cudaSuccess);
        EXPECT_EQ(cudaStreamWaitEvent(side, forked, 0), cudaSuccess);
        EXPECT_EQ(fill(stream, step, 2.0F, kCount), cudaSuccess);
        EXPECT_EQ(cudaEventRecord(produced, stream), cudaSuccess);
        if (waits) {
          EXPECT_EQ(cudaStreamWaitEvent(side, produced, 0), cudaSuccess);
        }
        EXPECT_EQ(accumulate(side, sum, step, kCount), cudaSuccess);
        EXPECT_EQ(cudaEventRecord(done, side), cudaSuccess);
        EXPECT_EQ(cudaStreamWaitEvent(stream, done, 0), cudaSuccess);
      });
      ASSERT_EQ(cudaGraphLaunch(graph, stream), cudaSuccess);
      stream.synchronize();
      wrong += sum.values()[0] != 2.0F ? 1 : 0;
      cudaGraphExecDestroy(graph);
    }
    EXPECT_EQ(wrong == 0, waits) << wrong;
  }
}

TEST(Graphs, IndependentBranchesRunInEitherOrder) {
  const Stream stream;
  const Stream side;
  const Event forked;
  const Event done;
  std::string order;
  const auto graph = captured(stream, [&] {
    EXPECT_EQ(cudaEventRecord(forked, stream), cudaSuccess);
    EXPECT_EQ(cudaStreamWaitEvent(side, forked, 0), cudaSuccess);
    EXPECT_EQ(enqueue(stream, [&order] { order.push_back('a'); }), cudaSuccess);
    EXPECT_EQ(enqueue(side, [&order] { order.push_back('b'); }), cudaSuccess);
    EXPECT_EQ(cudaEventRecord(done, side), cudaSuccess);
    EXPECT_EQ(cudaStreamWaitEvent(stream, done, 0), cudaSuccess);
    EXPECT_EQ(enqueue(stream, [&order] { order.push_back('c'); }), cudaSuccess);
  });
  std::set<std::string> orders;
  for (std::uint64_t seed = 1; seed <= 16; ++seed) {
    set_seed(seed);
    order.clear();
    ASSERT_EQ(cudaGraphLaunch(graph, stream), cudaSuccess);
    stream.synchronize();
    orders.insert(order);
  }
  EXPECT_EQ(orders, (std::set<std::string>{"abc", "bac"}));
  cudaGraphExecDestroy(graph);
}

TEST(Graphs, ForkThatDoesNotComeBackIsRefused) {
  const Stream stream;
  const Stream side;
  const Event forked;
  const DeviceArray<float> device(kCount);
  captured(
      stream,
      [&] {
        EXPECT_EQ(cudaEventRecord(forked, stream), cudaSuccess);
        EXPECT_EQ(cudaStreamWaitEvent(side, forked, 0), cudaSuccess);
        EXPECT_EQ(fill(side, device, 2.0F, kCount), cudaSuccess);
      },
      cudaErrorStreamCaptureUnjoined);
}

TEST(Graphs, CaptureAllowsNoSynchronisation) {
  const Stream stream;
  const Stream other;
  const Event event;
  const Event earlier;
  const DeviceArray<float> device(kCount);
  ASSERT_EQ(cudaEventRecord(earlier, other), cudaSuccess);
  float host[kCount];
  void* memory = nullptr;
  const std::vector<std::pair<cudaError_t, std::function<cudaError_t()>>> refused = {
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaDeviceSynchronize(); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaMalloc(&memory, 8); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaFree(device); }},
      {cudaErrorStreamCaptureUnsupported,
       [&] { return cudaMemcpy(host, device, kBytes, cudaMemcpyDeviceToHost); }},
      {cudaErrorCapturedEvent, [&] { return cudaEventSynchronize(event); }},
      {cudaErrorStreamCaptureIsolation, [&] { return cudaStreamWaitEvent(stream, earlier, 0); }},
  };
  for (const auto& [error, call] : refused) {
    captured(
        stream,
        [&, &error = error, &call = call] {
          EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
          EXPECT_EQ(call(), error);
          cudaStreamCaptureStatus status;
          EXPECT_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
          EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
        },
        cudaErrorStreamCaptureInvalidated);
  }
}

}  // namespace
}  // namespace chaski::cuda_model::test
