#include "kernels/device/op_graph.h"

#include <gtest/gtest.h>
#include <numeric>
#include <stdexcept>

#include "kernels/device/host_writer.h"
#include "kernels/elementwise/elementwise.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::OpTest;
using test::TestBackend;
using test::Values;

class OpGraphTest : public OpTest {
 protected:
  void SetUp() override {
    OpTest::SetUp();
    a_ = tensor({4}, {1, 2, 3, 4});
    sum_ = zeros({4});
  }
  // sum += a, twice: the second addition must see the first one's result.
  void queue() {
    ++times_queued_;
    add(sum_, a_, sum_);
    add(sum_, a_, sum_);
  }
  void run(std::int64_t number = 0) {
    graph_.run(device(), OpKey().add(a_).add(sum_).add(number), [this] { queue(); });
  }
  void expect_sum(float times) {
    EXPECT_EQ(values(sum_), (Values{times, 2 * times, 3 * times, 4 * times}));
  }

  OpGraph graph_;
  Tensor a_;
  Tensor sum_;
  int times_queued_ = 0;
};

TEST_P(OpGraphTest, RunsTheSameOpsEachTime) {
  for (int i = 1; i <= 5; ++i) {
    run();
    expect_sum(2.0f * static_cast<float>(i));
  }
  EXPECT_EQ(times_queued_, on_cpu() ? 5 : 2);  // once as they are, once into the graph
}

TEST_P(OpGraphTest, ReadsWhatTheTensorsHoldNow) {
  for (int i = 0; i < 4; ++i) run();
  const Values other = {10, 20, 30, 40};
  copy_from_host(other.data(), a_);
  fill(sum_, 0.0f);
  run();
  EXPECT_EQ(values(sum_), (Values{20, 40, 60, 80}));
}

TEST_P(OpGraphTest, OtherOperandsAreQueuedAnew) {
  for (int i = 0; i < 3; ++i) run();
  fill(sum_, 0.0f);
  const Tensor old = a_;
  a_ = tensor({4}, {100, 200, 300, 400});
  run();
  expect_sum(200);
  a_ = old;
  run(7);
  expect_sum(202);
  run(7);
  run(8);
  expect_sum(206);
}

TEST_P(OpGraphTest, OtherWorkspaceIsQueuedAnew) {
  const auto through_workspace = [&] {
    Workspace::Frame frame(device());
    const Tensor copied = frame.f32({4});
    copy(a_, copied);
    add(sum_, copied, sum_);
    ++times_queued_;
  };
  const auto run_inside = [&](std::int64_t elements) {
    Workspace::Frame outer(device());
    const Tensor taken = outer.f32({elements});
    fill(taken, 5.0f);
    graph_.run(device(), OpKey(), through_workspace);
    EXPECT_EQ(values(taken), Values(static_cast<std::size_t>(elements), 5.0f));
  };
  for (int i = 0; i < 4; ++i) run_inside(16);
  const int times = times_queued_;
  EXPECT_EQ(times, on_cpu() ? 4 : 2);
  // A replay would write to the memory that is taken now.
  run_inside(64);
  EXPECT_EQ(times_queued_, times + 1);
  expect_sum(5);
}

TEST_P(OpGraphTest, WhatCannotBeRecordedIsQueued) {
  if (on_cpu()) GTEST_SKIP() << "nothing is recorded on the CPU";
  const auto waits = [&] {
    add(sum_, a_, sum_);
    values(sum_);  // a wait, which a graph cannot hold
    add(sum_, a_, sum_);
  };
  for (int i = 1; i <= 3; ++i) {
    graph_.run(device(), OpKey(), waits);
    expect_sum(2.0f * static_cast<float>(i));
    EXPECT_EQ(device().graph_refusal().empty(), i == 1);
  }
  EXPECT_FALSE(device().allows_graphs());
}

TEST_P(OpGraphTest, AnErrorOfTheOpsArrives) {
  const auto fails = [] { throw std::runtime_error("on purpose"); };
  EXPECT_THROW(graph_.run(device(), OpKey(), fails), std::runtime_error);
  EXPECT_THROW(graph_.run(device(), OpKey(), fails), std::runtime_error);
  run();
  expect_sum(2);
}

TEST_P(OpGraphTest, IsNotUsedWhereItIsNotAllowed) {
  device().allow_graphs(false);
  for (int i = 0; i < 4; ++i) run();
  EXPECT_EQ(times_queued_, 4);
  expect_sum(8);
}

TEST(OpKeyTest, TellsOperandsApart) {
  EXPECT_EQ(OpKey().add(1).add(2), OpKey().add(1).add(2));
  EXPECT_NE(OpKey().add(1).add(2), OpKey().add(2).add(1));
  EXPECT_NE(OpKey().add(0), OpKey());
  OpKey key;
  EXPECT_THROW(
      {
        for (int i = 0; i < 1000; ++i) key.add(i);
      },
      std::logic_error);
}

class HostWriterTest : public OpTest {};

TEST_P(HostWriterTest, TheSourceIsFreeAtOnce) {
  const auto writer = create_host_writer(device());
  Values source(1000);
  std::vector<Tensor> written;
  for (int i = 0; i < 5; ++i) {
    // Larger ones later, so that the writer's own memory grows.
    source.resize(static_cast<std::size_t>(1000 * (i + 1)));
    std::iota(source.begin(), source.end(), static_cast<float>(i));
    written.push_back(zeros({static_cast<std::int64_t>(source.size())}));
    writer->write(source.data(), written.back());
    std::fill(source.begin(), source.end(), -1.0f);
  }
  for (int i = 0; i < 5; ++i) {
    Values expected(static_cast<std::size_t>(1000 * (i + 1)));
    std::iota(expected.begin(), expected.end(), static_cast<float>(i));
    EXPECT_EQ(values(written[static_cast<std::size_t>(i)]), expected) << i;
  }
}

// Ops queued before read what was there, those queued later what was written.
TEST_P(HostWriterTest, KeepsTheOrderOfOps) {
  const auto writer = create_host_writer(device());
  const Tensor x = tensor({3}, {1, 2, 3});
  const Tensor before = zeros({3});
  const Tensor after = zeros({3});
  const Values other = {7, 8, 9};
  copy(x, before);
  writer->write(other.data(), x);
  copy(x, after);
  EXPECT_EQ(values(before), (Values{1, 2, 3}));
  EXPECT_EQ(values(after), other);
}

CHASKI_ON_ALL_DEVICES(OpGraphTest);
CHASKI_ON_ALL_DEVICES(HostWriterTest);

}  // namespace
}  // namespace chaski
