// Processes of a job that is not there: what they would send.

#include <array>
#include <gtest/gtest.h>
#include <memory>
#include <vector>

#include "kernels/device/device.h"
#include "model/parameter.h"
#include "parallel/membership/message_tags.h"
#include "parallel/mpi/communicator.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {
namespace {

TEST(DryCommunicator, IsCompleteAtOnceAndCountsBytes) {
  Communicator communicator(1, 3);
  EXPECT_EQ(communicator.rank(), 1);
  EXPECT_EQ(communicator.size(), 3);
  EXPECT_FALSE(communicator.survives_failures());
  char byte = 7;
  for (const int tag : {4, 5, 4}) {
    Request out = communicator.isend(&byte, std::int64_t{1} << 40, 2, tag);
    communicator.wait(out);
  }
  Request in = communicator.irecv(&byte, 1, 0, 9);
  EXPECT_TRUE(communicator.test(in));
  EXPECT_EQ(byte, 7);
  std::array<double, 1> sum{3.0};
  communicator.all_reduce_sum(std::span<double>(sum));
  EXPECT_EQ(sum[0], 3.0);
  EXPECT_EQ(communicator.agree(5), 5u);
  communicator.barrier();
  communicator.throw_if_peer_died();
  communicator.revoke();
  ASSERT_EQ(communicator.sent().size(), 2u);
  EXPECT_EQ(communicator.sent()[0].tag, 4);
  EXPECT_EQ(communicator.sent()[0].bytes, std::int64_t{2} << 40);
  EXPECT_EQ(communicator.sent()[1].bytes, std::int64_t{1} << 40);
}

// Parameters of sizes that nothing divides, with gradients.
std::unique_ptr<ParameterSet> odd_parameters(Device& device) {
  auto parameters = std::make_unique<ParameterSet>(device);
  for (const std::int64_t size : {700001, 13, 1200007, 90001}) {
    parameters->add("p" + std::to_string(size), ParameterKind::ffn, 0, {size});
  }
  parameters->allocate();
  parameters->allocate_gradients([](const Parameter&) { return true; });
  return parameters;
}

// What the ranks of a group of processes send each other in a step, and say that they do.
TEST(DryCommunicator, GradientsAreSentAsTheReducerSays) {
  constexpr int kRanks = 3;
  for (const Backend backend : {Backend::cpu, Backend::cuda}) {
    std::int64_t all = 0;
    for (int rank = 0; rank < kRanks; ++rank) {
      const auto device = Device::create_counting(backend, 1);
      const auto parameters = odd_parameters(*device);
      Communicator communicator(rank, kRanks);
      GradientReducer reducer(communicator, {0, 1, 2}, 0, *parameters);
      for (int step = 0; step < 2; ++step) reducer.finish();
      std::int64_t sent = 0;
      for (const Communicator::Sent& message : communicator.sent()) {
        EXPECT_NE(message.to, rank);
        EXPECT_FALSE(is_pipeline_tag(message.tag));
        sent += message.bytes;
      }
      EXPECT_EQ(sent, 2 * reducer.bytes_per_step());
      all += reducer.bytes_per_step();
    }
    // Each gradient goes to where it is summed from two, and back: with what aligns them at most.
    const std::int64_t gradients = 4 * (700001 + 13 + 1200007 + 90001);
    EXPECT_GE(all, 2 * (kRanks - 1) * gradients - kRanks * 4);
    EXPECT_LE(all, 2 * (kRanks - 1) * (gradients + 4 * 64));
  }
}

}  // namespace
}  // namespace chaski
