#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <set>
#include <string>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/device_objects.h"
#include "tests/cuda_model/test_kernels.h"

// The execution model runs correct kernels correctly, and wrong ones do not pass.
namespace chaski::cuda_model::test {
namespace {

std::vector<float> small_integers(int n) {
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = static_cast<float>(i * 37 % 19 - 9);
  return values;
}

float exact_sum(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value);
  return static_cast<float>(sum);
}

TEST(BlockSum, IsExactForOddSizesInEveryOrder) {
  for (const int n : {1, 31, 33, 257, 1023, 5001}) {
    const auto values = small_integers(n);
    const DeviceArray<float> x(values);
    for (const int threads : {32, 96, 256, 1024}) {
      for (std::uint64_t seed = 1; seed <= 3; ++seed) {
        set_seed(seed);
        const DeviceArray<float> out(1);
        ASSERT_EQ(block_sum(x, out, n, threads), cudaSuccess);
        ASSERT_EQ(out.values()[0], exact_sum(values)) << n << ' ' << threads << ' ' << seed;
      }
    }
  }
}

TEST(BlockSum, ReadsBfloat16) {
  const auto values = small_integers(333);  // exact in 8 bits
  std::vector<std::uint16_t> halves;
  for (const float value : values) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    halves.push_back(static_cast<std::uint16_t>(bits >> 16));
  }
  const DeviceArray<std::uint16_t> x(halves);
  const DeviceArray<float> out(1);
  ASSERT_EQ(block_sum_bf16(x, out, 333, 64), cudaSuccess);
  EXPECT_EQ(out.values()[0], exact_sum(values));
}

/// Of 5 seeds, how many give other results than `expected`.
template <typename Launch>
int num_wrong(const std::vector<float>& expected, Launch launch) {
  int wrong = 0;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    set_seed(seed);
    const DeviceArray<float> out(expected.size());
    EXPECT_EQ(launch(static_cast<float*>(out)), cudaSuccess);
    wrong += out.values() != expected ? 1 : 0;
  }
  return wrong;
}

TEST(MissingBarrier, BetweenWriteAndReadShows) {
  constexpr int kThreads = 64;
  std::vector<float> expected(kThreads);
  for (int i = 0; i < kThreads; ++i) expected[i] = static_cast<float>((i + 1) % kThreads);
  EXPECT_EQ(num_wrong(expected, [](float* out) { return neighbour(out, kThreads, true); }), 0);
  EXPECT_GT(num_wrong(expected, [](float* out) { return neighbour(out, kThreads, false); }), 0);
}

TEST(MissingBarrier, BetweenReadAndNextWriteShows) {
  constexpr int kThreads = 64;
  const std::vector<float> expected(kThreads, 0.0F + 1.0F + 2.0F + 3.0F);
  EXPECT_EQ(num_wrong(expected, [](float* out) { return rounds(out, kThreads, true); }), 0);
  EXPECT_GT(num_wrong(expected, [](float* out) { return rounds(out, kThreads, false); }), 0);
}

void diverge_and_wait(Divergence which) {
  diverge(which);
  cudaDeviceSynchronize();
}

using DivergenceDeathTest = ::testing::Test;

TEST(DivergenceDeathTest, ThreadThatEndedBeforeTheBarrier) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kEndedThread),
               "wait for each other for ever[^$]*63 threads, [^$]*__syncthreads of "
               "test_kernels.cu[^$]*1 thread, the first thread .5, 0, 0.: has ended[^$]*"
               "diverge_kernel");
}

TEST(DivergenceDeathTest, BarriersOfTwoPlaces) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kTwoPlaces), "waits at the barrier of test_kernels");
}

TEST(DivergenceDeathTest, LaneThatEnded) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kEndedLane),
               "names lane 7, which has ended|mask 0xffffffff[^$]*has ended");
}

TEST(DivergenceDeathTest, LanesAtAnotherOperation) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kOtherOperation),
               "a shuffle[^$]*a vote|a vote[^$]*shuf");
}

TEST(DivergenceDeathTest, LanesAtAnotherPlace) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kOtherPlace), "wait for each other for ever");
}

TEST(DivergenceDeathTest, LaneThatTheBlockDoesNotHave) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kLaneBeyondBlock),
               "names lane 8, which the block does not have");
}

TEST(DivergenceDeathTest, OwnLaneNotInMask) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kOwnLaneMissing), "own lane is not in the mask");
}

TEST(DivergenceDeathTest, ReadsLaneOutsideTheMask) {
  EXPECT_DEATH(diverge_and_wait(Divergence::kReadsOutsideMask), "reads lane 20, which is not in");
}

float run_overrun(Overrun which, int at) {
  const DeviceArray<float> memory(std::vector<float>(9, 1.0F));
  const DeviceArray<float> out(1);
  EXPECT_EQ(overrun(which, memory, out, at), cudaSuccess);
  return out.values()[0];
}

using OverrunDeathTest = ::testing::TestWithParam<Overrun>;

TEST_P(OverrunDeathTest, IsReported) {
  EXPECT_EQ(run_overrun(GetParam(), 8), 1.0F);
  EXPECT_DEATH(run_overrun(GetParam(), 9),
               "overflow|insufficient space|out of bounds|use-after-poison");
  EXPECT_DEATH(run_overrun(GetParam(), -1),
               "overflow|underflow|insufficient space|out of bounds|use-after-poison");
}

INSTANTIATE_TEST_SUITE_P(AllMemories, OverrunDeathTest,
                         ::testing::Values(Overrun::kStatic, Overrun::kStaticOfTemplate,
                                           Overrun::kIndexOfMerged, Overrun::kDynamic,
                                           Overrun::kDevice));

TEST(OverrunDeathTest, MisalignedVector) {
  EXPECT_EQ(run_overrun(Overrun::kMisaligned, 4), 2.0F);
  EXPECT_DEATH(run_overrun(Overrun::kMisaligned, 3), "misaligned");
}

TEST(SharedVariables, ThoseWithoutRedZonesAreNamed) {
  EXPECT_EQ(unguarded_shared_variables(),
            std::vector<std::string>{
                "chaski::cuda_model::test::index_of_merged<float>(float*, int)::merged"});
}

TEST(LaunchDeathTest, LimitsOfDevices) {
  EXPECT_EQ(launch_shape(7, dim3(16, 16, 4), 48 * 1024), cudaSuccess);
  EXPECT_DEATH(launch_shape(1, 1025, 0), "a block has 1 to 1024 threads");
  EXPECT_DEATH(launch_shape(1, dim3(1, 1, 65), 0), "a block has 1 to 1024 threads");
  EXPECT_DEATH(launch_shape(0, 32, 0), "a grid has at least one block");
  EXPECT_DEATH(launch_shape(dim3(1, 65536), 32, 0), "a grid has at least one block");
  EXPECT_DEATH(launch_shape(0x80000000U, 32, 0), "a grid has at least one block");
  EXPECT_DEATH(launch_shape(1, 32, 227 * 1024 + 1), "at most 232448 on any device");
}

TEST(LaunchDeathTest, SharedMemoryMustBeAskedFor) {
  EXPECT_DEATH(launch_shape(1, 32, 48 * 1024 + 1), "49152 allowed");
  ASSERT_EQ(allow_shared(100 * 1024), cudaSuccess);
  EXPECT_EQ(launch_shape(1, 32, 100 * 1024), cudaSuccess);
  EXPECT_DEATH(launch_shape(1, 32, 100 * 1024 + 1), "102400 allowed");
  EXPECT_EQ(allow_shared(228 * 1024), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(SharedVariables, AreNaNUntilWrittenInEveryBlock) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    set_seed(seed);
    const DeviceArray<float> out(std::vector<float>(3, 0.0F));
    ASSERT_EQ(read_unwritten(out), cudaSuccess);
    for (const float value : out.values()) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(Atomics, CountEveryThreadOnceInAnOrderOfTheSeed) {
  constexpr int kGrid = 13;
  constexpr int kBlock = 33;
  std::set<std::vector<unsigned>> block_orders;
  std::set<std::vector<unsigned>> thread_orders;  // of the first block to run
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    set_seed(seed);
    const DeviceArray<unsigned> counter(std::vector<unsigned>{0});
    const DeviceArray<unsigned> tickets(std::vector<unsigned>(kGrid * kBlock, 0));
    const DeviceArray<unsigned> order(kGrid * kBlock);
    const DeviceArray<float> total(std::vector<float>{0.0F});
    ASSERT_EQ(draw_tickets(counter, tickets, order, total, kGrid, kBlock), cudaSuccess);
    EXPECT_EQ(counter.values()[0], unsigned{kGrid * kBlock});
    EXPECT_EQ(tickets.values(), std::vector<unsigned>(kGrid * kBlock, 1));
    EXPECT_EQ(total.values()[0], static_cast<float>(kGrid * kBlock * (kBlock - 1) / 2));
    auto blocks = order.values();
    auto threads = blocks;
    for (unsigned& block : blocks) block /= kBlock;
    for (unsigned& thread : threads) thread %= kBlock;
    block_orders.insert(blocks);
    thread_orders.insert(std::vector<unsigned>(threads.begin(), threads.begin() + kBlock));
  }
  EXPECT_GT(block_orders.size(), 1U);
  EXPECT_EQ(thread_orders.size(), 4U);
}

TEST(WarpOperations, GiveWhatTheirDefinitionsSay) {
  const DeviceArray<unsigned> out(32 * 12);
  ASSERT_EQ(warp_operations(out), cudaSuccess);
  const auto results = out.values();
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned* const own = &results[lane * 12];
    EXPECT_EQ(own[0], 5U);
    EXPECT_EQ(own[1], lane / 8 * 8 + 1);
    EXPECT_EQ(own[2], lane % 16 < 3 ? lane : lane - 3);
    EXPECT_EQ(own[3], lane % 16 > 12 ? lane : lane + 3);
    EXPECT_EQ(own[4], lane ^ 21U);
    EXPECT_EQ(own[5], 0x49249249U);
    EXPECT_EQ(own[6], lane < 10   ? 0x3ffU
                      : lane < 20 ? 0xffc00U
                      : lane < 30 ? 0x3ff00000U
                                  : 0xc0000000U);
    EXPECT_EQ(own[7], 496U);
    EXPECT_EQ(static_cast<int>(own[8]), -28);
    if (lane >= 24) {
      EXPECT_EQ(own[9], 31U);
    }
    EXPECT_EQ(own[10], lane ^ 1U);
    EXPECT_EQ(own[11], 1U);
  }
}

TEST(BlockVotes, CombineThePredicatesOfAllThreads) {
  for (const int set : {0, 1, 69, 70}) {
    std::vector<int> predicates(70, 0);
    std::fill_n(predicates.begin(), set, 4);
    const DeviceArray<int> x(predicates);
    const DeviceArray<int> out(3 * 70);
    ASSERT_EQ(block_votes(x, out, 70), cudaSuccess);
    const auto results = out.values();
    for (int thread = 0; thread < 70; ++thread) {
      EXPECT_EQ(results[3 * thread] != 0, set > 0);
      EXPECT_EQ(results[3 * thread + 1] != 0, set == 70);
      EXPECT_EQ(results[3 * thread + 2], set);
    }
  }
}

TEST(Intrinsics, OfIntegers) {
  const DeviceArray<unsigned> out(12);
  ASSERT_EQ(integer_intrinsics(out), cudaSuccess);
  EXPECT_EQ(out.values(),
            (std::vector<unsigned>{8, 4, 31, 0x80000000U, 3, 0x77553300U, 0x3f800000U, 0xffffffffU,
                                   3, static_cast<unsigned>(-15), 7 + 9 + 11 + 1, 2 + 4}));
}

TEST(Fibers, AreNotSwitchedWhereNobodyWaits) {
  const auto before = counts();
  ASSERT_EQ(many_barriers(10, 256, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(counts().switches - before.switches, 20U);  // to each block and back
  EXPECT_EQ(counts().threads - before.threads, 2560U);
  ASSERT_EQ(many_barriers(10, 256, 2), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_GT(counts().switches - before.switches, 2U * 2560U);
}

}  // namespace
}  // namespace chaski::cuda_model::test
