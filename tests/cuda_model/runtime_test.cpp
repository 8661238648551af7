#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/device_objects.h"
#include "tests/cuda_model/test_kernels.h"

// The false CUDA runtime: streams that dawdle, events, memory, errors.
namespace chaski::cuda_model::test {
namespace {

constexpr int kCount = 50;
constexpr std::size_t kBytes = kCount * sizeof(float);

class Pinned {
 public:
  Pinned() { EXPECT_EQ(cudaMallocHost(reinterpret_cast<void**>(&data_), kBytes), cudaSuccess); }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  operator float*() const { return data_; }

 private:
  float* data_ = nullptr;
};

TEST(LazyStream, ReadTooEarlySeesPoison) {
  const Stream stream;
  const DeviceArray<float> device(kCount);
  const Pinned host;
  ASSERT_EQ(fill(stream, device, 3.0F, kCount), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(host, device, kBytes, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_TRUE(std::isnan(host[0]));
  stream.synchronize();
  EXPECT_EQ(host[0], 3.0F);
  EXPECT_EQ(host[kCount - 1], 3.0F);
}

TEST(LazyStream, SourceOverwrittenTooEarlyShows) {
  const Stream stream;
  const DeviceArray<float> device(kCount);
  const Pinned host;
  std::fill_n(static_cast<float*>(host), kCount, 1.0F);
  ASSERT_EQ(cudaMemcpyAsync(device, host, kBytes, cudaMemcpyHostToDevice, stream), cudaSuccess);
  host[0] = 2.0F;
  stream.synchronize();
  EXPECT_EQ(device.values()[0], 2.0F);
  EXPECT_EQ(device.values()[1], 1.0F);
}

TEST(LazyStream, PageableSourceIsStaged) {
  const Stream stream;
  const DeviceArray<float> device(kCount);
  std::vector<float> host(kCount, 1.0F);
  ASSERT_EQ(cudaMemcpyAsync(device, host.data(), kBytes, cudaMemcpyHostToDevice, stream),
            cudaSuccess);
  host[0] = 2.0F;
  stream.synchronize();
  EXPECT_EQ(device.values()[0], 1.0F);
}

TEST(LazyStream, RunsAtOnceWhenNotLazy) {
  set_lazy(false);
  const Stream stream;
  const DeviceArray<float> device(kCount);
  const Pinned host;
  ASSERT_EQ(fill(stream, device, 3.0F, kCount), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(host, device, kBytes, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(host[0], 3.0F);
  set_lazy(true);
}

TEST(LazyStream, NeedsAnEventToSeeAnotherStream) {
  for (const bool waits : {false, true}) {
    const Stream producer;
    const Stream consumer;
    const Event produced;
    const DeviceArray<float> device(kCount);
    const Pinned host;
    ASSERT_EQ(fill(producer, device, 3.0F, kCount), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(produced, producer), cudaSuccess);
    ASSERT_EQ(fill(producer, device, 4.0F, kCount), cudaSuccess);
    if (waits) {
      ASSERT_EQ(cudaStreamWaitEvent(consumer, produced, 0), cudaSuccess);
    }
    ASSERT_EQ(cudaMemcpyAsync(host, device, kBytes, cudaMemcpyDeviceToHost, consumer), cudaSuccess);
    consumer.synchronize();
    // Until the event, and not a step further.
    EXPECT_EQ(std::isnan(host[0]), !waits);
    EXPECT_EQ(host[0] == 3.0F, waits);
  }
}

TEST(LazyStream, DefaultStreamWaitsForBlockingStreamsOnly) {
  const Stream blocking(cudaStreamDefault);
  const Stream free_running;
  const DeviceArray<float> first(kCount);
  const DeviceArray<float> second(kCount);
  ASSERT_EQ(fill(blocking, first, 1.0F, kCount), cudaSuccess);
  ASSERT_EQ(fill(free_running, second, 1.0F, kCount), cudaSuccess);
  EXPECT_EQ(first.values()[0], 1.0F);
  EXPECT_TRUE(std::isnan(second.values()[0]));
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(second.values()[0], 1.0F);
}

TEST(Events, AnswerNotReadyOnce) {
  const Stream stream;
  const Event start;
  const Event end;
  EXPECT_EQ(cudaEventQuery(end), cudaSuccess);
  const DeviceArray<float> device(kCount);
  ASSERT_EQ(cudaEventRecord(start, stream), cudaSuccess);
  ASSERT_EQ(fill(stream, device, 3.0F, kCount), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(end, stream), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(end), cudaErrorNotReady);
  float milliseconds = -1.0F;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(end), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
  EXPECT_GE(milliseconds, 0.0F);
  EXPECT_EQ(device.values()[0], 3.0F);
  cudaGetLastError();
}

TEST(HostFunctions, AndLibrariesRunInTheOrderOfTheStream) {
  const Stream stream;
  std::string order;
  const auto append = [](void* text) { static_cast<std::string*>(text)->push_back('h'); };
  ASSERT_EQ(cudaLaunchHostFunc(stream, append, &order), cudaSuccess);
  ASSERT_EQ(enqueue(stream, [&order] { order.push_back('l'); }), cudaSuccess);
  ASSERT_EQ(cudaLaunchHostFunc(stream, append, &order), cudaSuccess);
  EXPECT_EQ(order, "");
  stream.synchronize();
  EXPECT_EQ(order, "hlh");
}

TEST(Memory, EndsAtTheLimit) {
  std::size_t free_before = 0;
  std::size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  set_memory_limit(total - free_before + 1000);
  void* first = nullptr;
  void* second = nullptr;
  EXPECT_EQ(cudaMalloc(&first, 600), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 401), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  std::size_t free_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
  EXPECT_EQ(free_bytes, 400U);
  EXPECT_EQ(cudaFree(first), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 1000), cudaSuccess);
  EXPECT_EQ(cudaFree(second), cudaSuccess);
  set_memory_limit(std::size_t{8} << 30);
}

TEST(Memory, OrderedAllocationIsFreedByTheStream) {
  const Stream stream;
  void* memory = nullptr;
  std::size_t before = 0;
  std::size_t after = 0;
  std::size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
  ASSERT_EQ(cudaMallocAsync(&memory, 512, stream), cudaSuccess);
  ASSERT_EQ(cudaFreeAsync(memory, stream), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
  EXPECT_EQ(after, before - 512);
  stream.synchronize();
  ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
  EXPECT_EQ(after, before);
}

TEST(Memory, WrongDirectionsAndLengthsAreErrors) {
  const DeviceArray<float> device(std::vector<float>(kCount, 1.0F));
  std::vector<float> host(kCount + 1);
  EXPECT_EQ(cudaMemcpy(host.data(), device, kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), device, kBytes + 1, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 0, 4), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(host.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), device, kBytes, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(host[kCount - 1], 1.0F);
  cudaGetLastError();
}

TEST(Memory, CopiesRowsOfAMatrix) {
  const DeviceArray<float> device(std::vector<float>(12, 0.0F));
  const std::vector<float> rows = {1, 2, 3, 4};
  ASSERT_EQ(cudaMemcpy2DAsync(device + 1, 4 * sizeof(float), rows.data(), 2 * sizeof(float),
                              2 * sizeof(float), 2, cudaMemcpyHostToDevice, nullptr),
            cudaSuccess);
  EXPECT_EQ(device.values(), (std::vector<float>{0, 1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0}));
}

TEST(MemoryDeathTest, PinnedMemoryFreedTooEarly) {
  const auto free_too_early = [] {
    const Stream stream;
    const DeviceArray<float> device(std::vector<float>(kCount, 1.0F));
    void* host = nullptr;
    cudaMallocHost(&host, kBytes);
    cudaMemcpyAsync(host, device, kBytes, cudaMemcpyDeviceToHost, stream);
    cudaFreeHost(host);
    cudaStreamSynchronize(stream);
  };
  EXPECT_DEATH(free_too_early(), "heap-use-after-free");
}

TEST(MemoryDeathTest, HostTouchesDeviceMemory) {
  const DeviceArray<float> device(std::vector<float>(kCount, 1.0F));
  volatile float sum = 0.0F;
  EXPECT_DEATH(sum = sum + device[1], "the host touches device memory");
  EXPECT_DEATH(device[1] = 2.0F, "the host touches device memory");
  EXPECT_EQ(device.values()[1], 1.0F);
}

TEST(MemoryDeathTest, KernelUsesFreedMemory) {
  const DeviceArray<float> sum(std::vector<float>(kCount, 1.0F));
  const auto use_freed = [&sum] {
    void* freed = nullptr;
    cudaMalloc(&freed, kBytes);
    cudaFree(freed);
    accumulate(nullptr, sum, static_cast<float*>(freed), kCount);
    cudaDeviceSynchronize();
  };
  EXPECT_DEATH(use_freed(), "use-after-poison");
}

TEST(Devices, AreWhatTheEnvironmentSays) {
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  EXPECT_STREQ(cudaGetErrorName(cudaGetLastError()), "cudaErrorInvalidDevice");
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_EQ(properties.sharedMemPerBlockOptin, std::size_t{227} * 1024);
  int shared = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
            cudaSuccess);
  EXPECT_EQ(shared, 227 * 1024);
}

}  // namespace
}  // namespace chaski::cuda_model::test
