#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <numeric>
#include <random>
#include <stdexcept>

#include "kernels/device/device.h"
#include "mpi_session.h"
#include "parallel/mpi/communicator.h"

namespace chaski {
namespace {

std::vector<double> random_numbers(std::size_t count, int seed) {
  std::mt19937 generator(static_cast<unsigned>(seed));
  std::normal_distribution<double> normal;
  std::vector<double> values(count);
  for (double& value : values) value = normal(generator);
  return values;
}

// Whether all processes have the same bytes, by comparing with rank 0's.
bool same_everywhere(Communicator& communicator, const std::vector<double>& values) {
  std::vector<double> of_root = values;
  const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(double));
  communicator.broadcast(of_root.data(), bytes, 0);
  const bool same = std::memcmp(of_root.data(), values.data(), values.size() * sizeof(double)) == 0;
  return communicator.agree(same ? 0 : 1) == 0;
}

TEST(Communicator, SumsAreExact) {
  Communicator communicator(mpi_session());
  const int n = communicator.size();
  // Integers, which are exact: element i is i % 1000 · (rank + 1).
  for (const std::size_t count : {1u, 7u, 1000u, 100003u}) {
    std::vector<double> doubles(count);
    for (std::size_t i = 0; i < count; ++i) {
      doubles[i] = static_cast<double>(i % 1000) * (communicator.rank() + 1);
    }
    communicator.all_reduce_sum(doubles);
    const auto ranks = static_cast<double>(n * (n + 1) / 2);
    for (std::size_t i = 0; i < count; ++i) {
      ASSERT_EQ(doubles[i], static_cast<double>(i % 1000) * ranks);
    }
  }
  std::vector<std::int64_t> large{std::int64_t{1} << 40, -1};
  communicator.all_reduce_sum(large);
  EXPECT_EQ(large[0], (std::int64_t{1} << 40) * n);
  EXPECT_EQ(large[1], -n);
  EXPECT_EQ(communicator.all_reduce_max(-1.5 - communicator.rank()), -1.5);
}

TEST(Communicator, SumsHaveTheSameBitsOnAllRanksAndInEveryRun) {
  Communicator communicator(mpi_session());
  std::vector<double> first;
  for (int run = 0; run < 5; ++run) {
    std::vector<double> values = random_numbers(30011, 17 + communicator.rank());
    communicator.all_reduce_sum(values);
    if (run == 0) first = values;
    ASSERT_EQ(std::memcmp(first.data(), values.data(), values.size() * sizeof(double)), 0);
    ASSERT_TRUE(same_everywhere(communicator, values));
  }
}

TEST(Communicator, LargeMessagesArriveInOrder) {
  Communicator communicator(mpi_session());
  const int n = communicator.size();
  const int next = (communicator.rank() + 1) % n;
  const int previous = (communicator.rank() + n - 1) % n;
  const auto device = Device::create_cpu(1);
  constexpr std::int64_t kElements = 3 << 20;  // 12 MiB, twice in flight
  Buffer out[2], in[2];
  Request requests[4];
  for (int k = 0; k < 2; ++k) {
    out[k] = device->allocate(DType::f32, {kElements}, MemoryCategory::communication);
    in[k] = device->allocate(DType::f32, {kElements}, MemoryCategory::communication);
    float* data = out[k].tensor().f32();
    for (std::int64_t i = 0; i < kElements; ++i) {
      data[i] = static_cast<float>(i % 4099 + communicator.rank() + 10 * k);
    }
    requests[k] = communicator.irecv(in[k].tensor(), previous, 5);
  }
  for (int k = 0; k < 2; ++k) requests[2 + k] = communicator.isend(out[k].tensor(), next, 5);
  for (Request& request : requests) communicator.wait(request);
  for (int k = 0; k < 2; ++k) {
    const float* data = in[k].tensor().f32();
    for (std::int64_t i = 0; i < kElements; ++i) {
      ASSERT_EQ(data[i], static_cast<float>(i % 4099 + previous + 10 * k));
    }
  }
}

TEST(Communicator, BroadcastsAndGathersTexts) {
  Communicator communicator(mpi_session());
  const int root = communicator.size() - 1;
  std::string text = communicator.rank() == root ? std::string("quipu\0knot", 10) : "nothing";
  communicator.broadcast(text, root);
  EXPECT_EQ(text, std::string("quipu\0knot", 10));
  const auto rank = static_cast<std::size_t>(communicator.rank());
  const auto texts = communicator.gather(std::string(rank * 3, 'a' + communicator.rank()), root);
  if (communicator.rank() == root) {
    ASSERT_EQ(texts.size(), static_cast<std::size_t>(communicator.size()));
    for (std::size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(texts[i], std::string(i * 3, static_cast<char>('a' + i)));
    }
  } else {
    EXPECT_TRUE(texts.empty());
  }
  communicator.barrier();
}

TEST(Communicator, AgreementIsTheOrOfAllFlags) {
  Communicator communicator(mpi_session());
  EXPECT_EQ(communicator.agree(0), 0u);
  EXPECT_EQ(communicator.agree(1u << communicator.rank()), (1u << communicator.size()) - 1);
  const bool last = communicator.rank() + 1 == communicator.size();
  EXPECT_EQ(communicator.agree(last ? 1u << 29 : 0), 1u << 29);
}

TEST(Communicator, TheWaitCallbackMayGiveUpAWait) {
  Communicator communicator(mpi_session());
  float value = 0;
  Request never = communicator.irecv(&value, sizeof value, communicator.rank(), 9);
  int calls = 0;
  communicator.set_wait_callback([&] {
    if (++calls == 3) throw std::runtime_error("deadline");
  });
  EXPECT_THROW(communicator.wait(never), std::runtime_error);
  EXPECT_EQ(calls, 3);
  EXPECT_TRUE(never.active());
  communicator.set_wait_callback({});
  never.give_up();
  EXPECT_FALSE(never.active());
}

// Rank 0 leaves a sum before the others have come, and its memory goes; the sum is still what it
// gave to it, and the next one is not taken for it.
TEST(Communicator, ACollectiveThatWasLeftGoesOnWithItsMemory) {
  Communicator communicator(mpi_session());
  if (communicator.size() == 1) GTEST_SKIP() << "one process waits for nobody";
  constexpr std::size_t kCount = 100000;  // more than MPI copies at the start
  constexpr int kLeftTag = 1;
  char byte = 0;
  std::vector<double> values(kCount, communicator.rank() + 1.0);
  if (communicator.rank() == 0) {
    communicator.set_wait_callback([] { throw std::runtime_error("deadline"); });
    EXPECT_THROW(communicator.all_reduce_sum(values), std::runtime_error);
    communicator.set_wait_callback({});
    EXPECT_EQ(values, std::vector<double>(kCount, 1.0));
    std::fill(values.begin(), values.end(), -1e9);
    for (int to = 1; to < communicator.size(); ++to) {
      Request request = communicator.isend(&byte, 1, to, kLeftTag);
      communicator.wait(request);
    }
  } else {
    Request request = communicator.irecv(&byte, 1, 0, kLeftTag);
    communicator.wait(request);
    communicator.all_reduce_sum(values);
    const double n = communicator.size();
    EXPECT_EQ(values, std::vector<double>(kCount, n * (n + 1) / 2));
  }
  std::vector<double> ones(3, 1.0);
  communicator.all_reduce_sum(ones);
  EXPECT_EQ(ones, std::vector<double>(3, communicator.size()));
}

TEST(Communicator, KnowsTheProcessesOfItsHost) {
  Communicator communicator(mpi_session());
  const std::vector<int> ranks = communicator.ranks_on_this_host();
  ASSERT_EQ(std::ssize(ranks), communicator.size());  // the tests run on one
  for (int rank = 0; rank < communicator.size(); ++rank) EXPECT_EQ(ranks[rank], rank);
}

TEST(Communicator, TwoCommunicatorsDoNotMixTheirMessages) {
  Communicator a(mpi_session());
  Communicator b(mpi_session());
  const int n = a.size();
  const int next = (a.rank() + 1) % n;
  const int previous = (a.rank() + n - 1) % n;
  const int from_a = 1;
  const int from_b = 2;
  int at_a = 0;
  int at_b = 0;
  Request send_b = b.isend(&from_b, sizeof from_b, next, 3);
  Request send_a = a.isend(&from_a, sizeof from_a, next, 3);
  Request receive_a = a.irecv(&at_a, sizeof at_a, previous, 3);
  Request receive_b = b.irecv(&at_b, sizeof at_b, previous, 3);
  a.wait(receive_a);
  b.wait(receive_b);
  a.wait(send_a);
  b.wait(send_b);
  EXPECT_EQ(at_a, 1);
  EXPECT_EQ(at_b, 2);
}

TEST(MpiRuntime, DescribesItself) {
  const std::string text = mpi_session().description();
  EXPECT_NE(text.find(MpiRuntime::library_version()), std::string::npos);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_LE(mpi_session().survives_failures(), MpiRuntime::built_with_recovery());
}

}  // namespace
}  // namespace chaski
