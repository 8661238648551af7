#include <dlfcn.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <optional>
#include <ostream>

#include "kernels/attention/cudnn_attention_plan.h"

namespace chaski::cuda {
namespace {

// A GPU as cuDNN describes one: in the words of cudaDeviceProp, but for a few.
struct Gpu {
  const char* name;
  int architecture;
  int multiprocessors;
  int shared_bytes;     // most of a block
  int blocks, threads;  // of a multiprocessor
  std::int64_t memory;
  int clock_khz, memory_clock_khz, memory_bits, cache_bytes;
};

void PrintTo(const Gpu& gpu, std::ostream* stream) {
  *stream << gpu.name;
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr Gpu kA100 = {"NVIDIA A100-SXM4-80GB",
                       80,
                       108,
                       166912,
                       32,
                       2048,
                       80 * kGiB,
                       1410000,
                       1593000,
                       5120,
                       40 << 20};
constexpr Gpu kRtx4090 = {"NVIDIA GeForce RTX 4090",
                          89,
                          128,
                          101376,
                          24,
                          1536,
                          24 * kGiB,
                          2520000,
                          10501000,
                          384,
                          72 << 20};
constexpr Gpu kH100 = {"NVIDIA H100 80GB HBM3",
                       90,
                       132,
                       232448,
                       32,
                       2048,
                       80 * kGiB,
                       1980000,
                       2619000,
                       5120,
                       50 << 20};
constexpr Gpu kB200 = {"NVIDIA B200", 100,     148,     232448, 32,       2048,
                       180 * kGiB,    1965000, 3996000, 8192,   126 << 20};
constexpr Gpu kT4 = {"Tesla T4", 75,      40,      65536, 16,     1024,
                     16 * kGiB,  1590000, 5001000, 256,   4 << 20};

std::string json_of(const Gpu& gpu) {
  return fmt::format(
      R"({{"deviceName":"{}","deviceVer":{},"driverVer":13000,"cudaDeviceId":0,"pciDeviceId":0,)"
      R"("multiProcessorCount":{},"maxSharedMemoryPerBlock":49152,)"
      R"("maxSharedMemoryPerBlockOptin":{},"reservedSharedMemoryPerBlock":1024,)"
      R"("maxCtasPerSM":{},"maxThreadsPerSM":{},"maxThreadsPerBlock":1024,"warpSize":32,)"
      R"("regsPerBlock":65536,"maxRegistersPerSM":65536,"maxGridSize":[2147483647,65535,65535],)"
      R"("maxBlockSize":[1024,1024,64],"totalGlobalMem":{},"smClockRateKHz":{},)"
      R"("memClockRateKHz":{},"memoryBusWidth":{},"l2CacheSize":{},"isTccDriver":0,)"
      R"("supportCoopLaunch":1}})",
      gpu.name, gpu.architecture * 10, gpu.multiprocessors, gpu.shared_bytes, gpu.blocks,
      gpu.threads, gpu.memory, gpu.clock_khz, gpu.memory_clock_khz, gpu.memory_bits,
      gpu.cache_bytes);
}

class CudnnPlansTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Also where there is a real driver: that would refuse kernels for another GPU than its own.
    static const void* const driver = dlopen(CHASKI_FALSE_DRIVER, RTLD_NOW | RTLD_GLOBAL);
    ASSERT_NE(driver, nullptr) << dlerror();
    std::size_t version = 0;
    try {
      version = cudnn().GetVersion();
    } catch (const std::runtime_error& error) {
      GTEST_SKIP() << error.what();
    }
    if (CUDNN_VERSION < 90800 || version < 90800)
      GTEST_SKIP() << cudnn_version_text(version) << " plans for no GPU that is not here";
  }

  void describe(const Gpu& gpu) {
    properties_.emplace(described_gpu(json_of(gpu)));
    target_.properties = &*properties_;
    target_.architecture = gpu.architecture;
  }
  AttentionPlan plan(AttentionPass pass, const AttentionShape& shape) const {
    return AttentionPlan(target_, pass, shape);
  }
  // Why it has none.
  std::string refusal(AttentionPass pass, const AttentionShape& shape) const {
    try {
      plan(pass, shape);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return {};
  }

 private:
  std::optional<CudnnDescriptor> properties_;
  CudnnTarget target_;
};

MATCHER(IsOneLine, "") {
  return !arg.empty() && arg.find('\n') == std::string::npos;
}

class CudnnPlansOfGpuTest : public CudnnPlansTest, public ::testing::WithParamInterface<Gpu> {
 protected:
  // Of older versions' backward pass.
  static bool is_known_fault(const AttentionShape& shape) {
    const std::size_t version = cudnn().GetVersion();
    return (version <= 91500 && shape.sequence_length % 128 != 0) ||
           (version < 91800 && GetParam().architecture == 100);
  }
};

TEST_P(CudnnPlansOfGpuTest, BothPassesOfManyShapes) {
  describe(GetParam());
  for (const AttentionShape& shape : {
           AttentionShape{8, 256, 8, 8, 64},
           AttentionShape{2, 2048, 32, 8, 128},
           AttentionShape{3, 333, 10, 5, 80},
           AttentionShape{1, 77, 4, 1, 64},
       }) {
    SCOPED_TRACE(fmt::format("batch {}, sequence {}, heads {} of {}, head_dim {}", shape.batch,
                             shape.sequence_length, shape.num_heads, shape.num_kv_heads,
                             shape.head_dim));
    const AttentionPlan forward = plan(AttentionPass::forward, shape);
    EXPECT_TRUE(forward.is_deterministic());
    EXPECT_GE(forward.workspace_bytes(), 1);
    if (is_known_fault(shape)) {
      EXPECT_THAT(refusal(AttentionPass::backward, shape), IsOneLine());
      continue;
    }
    const AttentionPlan backward = plan(AttentionPass::backward, shape);
    EXPECT_TRUE(backward.is_deterministic());
    // At least what softmax's gradient subtracts in each row.
    EXPECT_GE(backward.workspace_bytes(), shape.num_tokens() * shape.num_heads * 4);
  }
}

std::string gpu_name(const ::testing::TestParamInfo<Gpu>& info) {
  return fmt::format("sm_{}", info.param.architecture);
}
INSTANTIATE_TEST_SUITE_P(, CudnnPlansOfGpuTest, ::testing::Values(kA100, kRtx4090, kH100, kB200),
                         gpu_name);

TEST_F(CudnnPlansTest, ALargeBatchGoesInPartsOfTheWorkspaceAllowed) {
  describe(kH100);
  const AttentionPlan one = plan(AttentionPass::backward, {1, 2048, 32, 8, 128});
  const AttentionPlan eight = plan(AttentionPass::backward, {8, 2048, 32, 8, 128});
  EXPECT_EQ(one.num_parts(), 1);
  EXPECT_EQ(eight.num_parts(), 8);
  EXPECT_EQ(eight.workspace_bytes(), one.workspace_bytes());
  EXPECT_LE(one.workspace_bytes(), kMostAttentionWorkspace);
  // Then the heads of one sequence, each key head with its query heads.
  const AttentionPlan longer = plan(AttentionPass::backward, {2, 8192, 32, 8, 64});
  EXPECT_EQ(longer.num_parts(), 16);
  EXPECT_LE(longer.workspace_bytes(), kMostAttentionWorkspace + (std::int64_t{32} << 20));
}

TEST_F(CudnnPlansTest, WhatItCannotTakeIsRefusedInOneLine) {
  describe(kT4);
  EXPECT_THAT(refusal(AttentionPass::forward, {2, 256, 8, 8, 64}), IsOneLine());
  EXPECT_THAT(refusal(AttentionPass::backward, {2, 256, 8, 8, 64}), IsOneLine());
  describe(kA100);
  const std::string too_wide = refusal(AttentionPass::backward, {2, 256, 4, 4, 256});
  EXPECT_THAT(too_wide, IsOneLine());
  // Older ones do not say what they take at most.
  if (cudnn().GetVersion() >= 91900) {
    EXPECT_THAT(too_wide, ::testing::HasSubstr("128"));
  }
  EXPECT_THAT(refusal(AttentionPass::backward, {2, 1, 4, 4, 64}), IsOneLine());
  // Rows that are not as aligned as described, and a query head without a key head.
  EXPECT_THAT(refusal(AttentionPass::forward, {1, 64, 4, 4, 12}), IsOneLine());
  EXPECT_THAT(refusal(AttentionPass::forward, {1, 64, 4, 3, 64}), IsOneLine());
}

TEST_F(CudnnPlansTest, ADescriptionThatIsNoneIsRefusedInOneLine) {
  try {
    described_gpu("{}");
    FAIL() << "taken";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(std::string(error.what()), IsOneLine());
  }
}

}  // namespace
}  // namespace chaski::cuda
