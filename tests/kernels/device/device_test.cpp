#include "kernels/device/device.h"

#include <algorithm>
#include <cstdint>
#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <utility>

namespace chaski {
namespace {

constexpr std::int64_t kMebibyte = std::int64_t{1} << 20;

TEST(DeviceTest, AccountsExactBytesByCategory) {
  const auto device = Device::create_cpu(1);
  EXPECT_EQ(device->memory().total_current(), 0);
  Buffer weights = device->allocate(DType::f32, {3, 5}, MemoryCategory::weights);  // 60 -> 64
  const Buffer bytes = device->allocate(DType::u8, {65}, MemoryCategory::communication);  // -> 128
  {
    const Buffer gradients =
        device->allocate(DType::bf16, {3, kMebibyte}, MemoryCategory::gradients);  // 6 MiB
    EXPECT_EQ(device->memory().current(MemoryCategory::gradients), 6 * kMebibyte);
    EXPECT_EQ(device->memory().total_current(), 6 * kMebibyte + 64 + 128);
  }
  EXPECT_EQ(device->memory().current(MemoryCategory::gradients), 0);
  EXPECT_EQ(device->memory().peak(MemoryCategory::gradients), 6 * kMebibyte);
  EXPECT_EQ(device->memory().current(MemoryCategory::weights), 64);
  EXPECT_EQ(device->memory().current(MemoryCategory::communication), 128);
  EXPECT_EQ(device->num_allocations(), 3);
  weights.release();
  EXPECT_TRUE(weights.empty());
  EXPECT_EQ(device->memory().total_current(), 128);
}

TEST(DeviceTest, BuffersMove) {
  const auto device = Device::create_cpu(1);
  Buffer a = device->allocate(DType::f32, {16}, MemoryCategory::weights);
  void* data = a.tensor().raw();
  Buffer b = std::move(a);
  EXPECT_TRUE(a.empty());  // NOLINT: the state after a move is part of the contract
  EXPECT_EQ(b.tensor().raw(), data);
  Buffer c = device->allocate(DType::f32, {32}, MemoryCategory::optimizer);
  c = std::move(b);
  EXPECT_EQ(c.tensor().raw(), data);
  EXPECT_EQ(device->memory().current(MemoryCategory::optimizer), 0);
  EXPECT_EQ(device->memory().current(MemoryCategory::weights), 64);
}

TEST(DeviceTest, MemoryIsZeroedAndAligned) {
  const auto device = Device::create_cpu(1);
  for (const std::int64_t count :
       {std::int64_t{1}, std::int64_t{1000}, kMebibyte, kMebibyte + 77}) {
    for (int round = 0; round < 2; ++round) {  // the second time the memory may be used already
      const Buffer buffer = device->allocate(DType::f32, {count}, MemoryCategory::activations);
      float* values = buffer.tensor().f32();
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(values) % Device::kAlignment, 0u);
      EXPECT_TRUE(std::all_of(values, values + count, [](float v) { return v == 0.0f; }));
      std::fill_n(values, count, 1.0f);
    }
  }
  const Buffer none = device->allocate(DType::f32, {0, 4}, MemoryCategory::activations);
  EXPECT_FALSE(none.empty());
  EXPECT_EQ(none.tensor().num_elements(), 0);
}

TEST(DeviceTest, SaysWhatIsInUseWhenMemoryRunsOut) {
  const auto device = Device::create_cpu(1);
  const Buffer weights = device->allocate(DType::u8, {3 * kMebibyte}, MemoryCategory::weights);
  try {
    device->allocate(DType::f32, {std::int64_t{1} << 45}, MemoryCategory::optimizer);
    FAIL() << "128 TiB were allocated";
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("134217728.0 MiB of optimizer"), std::string::npos) << text;
    EXPECT_NE(text.find("weights 3.0 MiB"), std::string::npos) << text;
  }
  EXPECT_EQ(device->memory().current(MemoryCategory::optimizer), 0);
  EXPECT_EQ(device->num_allocations(), 1);
}

TEST(DeviceTest, ThreadsAndBackends) {
  EXPECT_EQ(Device::create_cpu(3)->num_threads(), 3);
  EXPECT_GE(Device::create_cpu()->num_threads(), 1);
  EXPECT_EQ(Device::create_cpu()->backend(), Backend::cpu);
  EXPECT_THROW(Device::create_cpu(-1), std::invalid_argument);
}

// What one step takes from the workspace: nested frames of several sizes.
void use_workspace(Device& device) {
  Workspace::Frame outer(device);
  const Tensor a = outer.f32({kMebibyte});
  std::fill_n(a.f32(), a.num_elements(), 1.0f);
  {
    Workspace::Frame inner(device);
    const Tensor b = inner.f32({2 * kMebibyte});
    std::fill_n(b.f32(), b.num_elements(), 2.0f);
  }
  {
    Workspace::Frame inner(device);
    const Tensor c = inner.f32({3, 100});
    const Tensor d = inner.tensor(DType::u8, {5 * kMebibyte});
    std::fill_n(c.f32(), c.num_elements(), 3.0f);
    std::fill_n(d.as<std::uint8_t>(), d.num_elements(), std::uint8_t{4});
    EXPECT_EQ(c.f32()[299], 3.0f);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(d.raw()) % Device::kAlignment, 0u);
  }
  EXPECT_EQ(a.f32()[0], 1.0f);
  EXPECT_EQ(a.f32()[kMebibyte - 1], 1.0f);
}

TEST(WorkspaceTest, GrowsInTheFirstRoundOnly) {
  const auto device = Device::create_cpu(1);
  use_workspace(*device);
  const std::int64_t allocations = device->num_allocations();
  // The most in use at a time: 4 MiB of the outer frame and 8 MiB of the first inner one.
  EXPECT_EQ(device->memory().current(MemoryCategory::workspace), 12 * kMebibyte);
  const std::int64_t peak = device->memory().peak(MemoryCategory::workspace);
  for (int round = 0; round < 3; ++round) use_workspace(*device);
  EXPECT_EQ(device->num_allocations(), allocations);
  EXPECT_EQ(device->memory().current(MemoryCategory::workspace), 12 * kMebibyte);
  EXPECT_EQ(device->memory().peak(MemoryCategory::workspace), peak);
}

TEST(WorkspaceTest, GivesMemoryBackInStackOrder) {
  const auto device = Device::create_cpu(1);
  Workspace::Frame outer(*device);
  const Tensor a = outer.f32({16});
  const void* first = nullptr;
  {
    Workspace::Frame inner(*device);
    first = inner.f32({16}).raw();
    EXPECT_NE(first, a.raw());
  }
  Workspace::Frame inner(*device);
  EXPECT_EQ(inner.f32({16}).raw(), first);
  EXPECT_THROW(outer.f32({16}), std::logic_error);
}

}  // namespace
}  // namespace chaski
