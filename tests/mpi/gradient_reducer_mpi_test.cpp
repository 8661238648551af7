#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "mpi_session.h"
#include "parallel/membership/roster.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {
namespace {

// Rank r's gradient of element i of parameter p: anything that does not add up exactly.
float gradient_value(int rank, std::int64_t p, std::int64_t i) {
  const auto mixed = static_cast<std::uint32_t>(rank * 7919 + p * 104729 + i * 1299709 + 12345);
  return (static_cast<float>(mixed * 2654435761U >> 8) / 16777216.0f - 0.5f) *
         static_cast<float>(1 + rank * rank);
}

class Gradients {
 public:
  explicit Gradients(const std::vector<Shape>& shapes, bool freeze = false)
      : device_(Device::create_cpu(1)), parameters_(*device_) {
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      // Some of them in a group, i.e. adjacent without padding.
      parameters_.add(fmt::format("p{}", i), ParameterKind::ffn, 0, shapes[i],
                      i % 4 < 2 ? fmt::format("group{}", i / 4) : "");
    }
    parameters_.allocate();
    parameters_.allocate_gradients(
        [&](const Parameter& p) { return !freeze || parameters_.index_of(p.name) % 3 != 1; });
  }

  ParameterSet& parameters() { return parameters_; }

  void fill(int rank) {
    for (std::int64_t p = 0; p < parameters_.size(); ++p) {
      const Tensor& gradient = parameters_[p].gradient;
      for (std::int64_t i = 0; i < gradient.num_elements(); ++i) {
        gradient.f32()[i] = gradient_value(rank, p, i);
      }
    }
  }

  // Bit for bit the sum over ranks 0 … n - 1 taken in that order.
  void expect_sums(int num_ranks) const {
    for (std::int64_t p = 0; p < parameters_.size(); ++p) {
      const Tensor& gradient = parameters_[p].gradient;
      for (std::int64_t i = 0; i < gradient.num_elements(); ++i) {
        float sum = gradient_value(0, p, i);
        for (int rank = 1; rank < num_ranks; ++rank) sum += gradient_value(rank, p, i);
        ASSERT_EQ(gradient.f32()[i], sum) << "parameter " << p << " element " << i;
      }
    }
  }

  // As a backward pass does: from the last parameter to the first, a few at a time.
  void announce(GradientListener& listener) {
    std::int64_t end = parameters_.size();
    for (std::int64_t step = 1; end > 0; step = step % 3 + 1) {
      const std::int64_t count = std::min(step, end);
      end -= count;
      listener.gradients_ready(end, count);
    }
  }

 private:
  std::unique_ptr<Device> device_;
  ParameterSet parameters_;
};

std::vector<int> all_ranks(const Communicator& communicator) {
  std::vector<int> ranks(static_cast<std::size_t>(communicator.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

const std::vector<Shape> kOddShapes{{1000, 67}, {13},     {3, 5},  {1},      {511, 129}, {64, 64},
                                    {7},        {257, 3}, {90001}, {33, 31}, {2, 2},     {16}};

class ReducerOfBucketSize : public testing::TestWithParam<std::int64_t> {};

TEST_P(ReducerOfBucketSize, GivesTheSumInTheOrderOfRanks) {
  Communicator communicator(mpi_session());
  for (const bool freeze : {false, true}) {
    Gradients gradients(kOddShapes, freeze);
    GradientReducer reducer(communicator, all_ranks(communicator), 0, gradients.parameters(),
                            {.bucket_bytes = GetParam(), .min_buckets = 4});
    for (int step = 0; step < 3; ++step) {
      gradients.fill(communicator.rank());
      gradients.announce(reducer);
      reducer.finish();
      gradients.expect_sums(communicator.size());
      if (communicator.size() > 1) {
        EXPECT_GT(reducer.num_buckets(), 1);
      } else {
        EXPECT_EQ(reducer.num_buckets(), 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ReducerOfBucketSize,
                         testing::Values(1, 4096, 100000, std::int64_t{1} << 30));

// The bytes of a ring all-reduce, 2 (n - 1) / n of the buffer, are the least possible.
TEST(GradientReducer, SendsNoMoreThanItMust) {
  Communicator communicator(mpi_session());
  Gradients gradients({{1536, 1024}, {1536, 1024}, {1536, 1024}, {1536, 1024}});
  GradientReducer reducer(communicator, all_ranks(communicator), 0, gradients.parameters());
  const std::int64_t n = communicator.size();
  EXPECT_EQ(reducer.bytes_per_step(), 4 * (std::int64_t{6} << 20) / n * 2 * (n - 1));
  EXPECT_EQ(reducer.num_buckets(), n > 1 ? 4 : 0);
}

TEST(GradientReducer, WhatWasNotAnnouncedIsReducedByFinish) {
  Communicator communicator(mpi_session());
  Gradients gradients(kOddShapes);
  GradientReducer reducer(communicator, all_ranks(communicator), 0, gradients.parameters(),
                          {.bucket_bytes = 4096});
  gradients.fill(communicator.rank());
  if (communicator.rank() % 2 == 0) reducer.gradients_ready(8, 4);
  reducer.finish();
  gradients.expect_sums(communicator.size());
}

TEST(GradientReducer, LeavesOutWhatIsFrozen) {
  Communicator communicator(mpi_session());
  Gradients gradients(kOddShapes);
  gradients.parameters().allocate_gradients([](const Parameter& p) { return p.name != "p8"; });
  GradientReducer some(communicator, all_ranks(communicator), 0, gradients.parameters(),
                       {.bucket_bytes = 4096});
  gradients.fill(communicator.rank());
  gradients.announce(some);
  some.finish();
  gradients.expect_sums(communicator.size());
  gradients.parameters().allocate_gradients([](const Parameter&) { return false; });
  GradientReducer none(communicator, all_ranks(communicator), 0, gradients.parameters());
  gradients.announce(none);
  none.finish();
}

// An aborted step leaves nothing behind that could reach the next one.
TEST(GradientReducer, AbortedStepCanRunAgain) {
  Communicator communicator(mpi_session());
  Gradients gradients(kOddShapes);
  GradientReducer reducer(communicator, all_ranks(communicator), 0, gradients.parameters(),
                          {.bucket_bytes = 4096});
  gradients.fill(communicator.rank() + 5);
  gradients.announce(reducer);
  // All processes give up at the same point and end what is in flight, as after a vote.
  communicator.barrier();
  reducer.abort();
  communicator.barrier();
  Communicator fresh(mpi_session());
  GradientReducer again(fresh, all_ranks(fresh), 0, gradients.parameters());
  gradients.fill(communicator.rank());
  gradients.announce(again);
  again.finish();
  gradients.expect_sums(communicator.size());
}

TEST(GradientReducer, RefusesASecondAnnouncement) {
  Communicator communicator(mpi_session());
  if (communicator.size() == 1) GTEST_SKIP() << "nothing is announced to one process";
  Gradients gradients(kOddShapes);
  GradientReducer reducer(communicator, all_ranks(communicator), 0, gradients.parameters());
  reducer.gradients_ready(5, 1);
  EXPECT_THROW(reducer.gradients_ready(5, 1), std::logic_error);
  EXPECT_THROW(reducer.gradients_ready(11, 2), std::logic_error);
}

// A process that hosts two stages reduces both at a time with the same peers.
TEST(GradientReducer, TwoStagesAtATime) {
  Communicator communicator(mpi_session());
  Gradients first(kOddShapes);
  Gradients second({{301, 7}, {5000}, {3}});
  GradientReducer reduce_first(communicator, all_ranks(communicator), 0, first.parameters());
  GradientReducer reduce_second(communicator, all_ranks(communicator), 1, second.parameters());
  first.fill(communicator.rank());
  second.fill(communicator.rank());
  // In different orders on different ranks.
  if (communicator.rank() % 2 == 0) {
    first.announce(reduce_first);
    second.announce(reduce_second);
  } else {
    second.announce(reduce_second);
    first.announce(reduce_first);
  }
  reduce_first.finish();
  reduce_second.finish();
  first.expect_sums(communicator.size());
  second.expect_sums(communicator.size());
}

TEST(GradientReducer, AllocatesNothingAfterItIsBuilt) {
  Communicator communicator(mpi_session());
  Gradients gradients(kOddShapes);
  Device& device = gradients.parameters().device();
  GradientReducer reducer(communicator, all_ranks(communicator), 0, gradients.parameters());
  const std::int64_t allocations = device.num_allocations();
  for (int step = 0; step < 3; ++step) {
    gradients.announce(reducer);
    reducer.finish();
  }
  EXPECT_EQ(device.num_allocations(), allocations);
}

}  // namespace
}  // namespace chaski
