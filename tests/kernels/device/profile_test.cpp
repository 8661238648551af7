#include "kernels/device/profile.h"

#include <cstring>
#include <gtest/gtest.h>
#include <thread>

#include "kernels/attention/attention.h"
#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

void spin_for(std::chrono::microseconds duration) {
  const auto end = Clock::now() + duration;
  while (Clock::now() < end) {
  }
}

const Profile::Entry* find(const Profile& profile, const char* op) {
  for (const Profile::Entry& entry : profile.entries()) {
    if (std::strcmp(entry.op, op) == 0) return &entry;
  }
  return nullptr;
}

TEST(Profile, TimeOfInnerScopesIsNotCountedTwice) {
  const auto start = Clock::now();
  Profile profile;
  {
    const ProfileScope outer("outer");
    spin_for(std::chrono::microseconds(200));
    for (int i = 0; i < 3; ++i) {
      const ProfileScope inner("inner");
      spin_for(std::chrono::microseconds(1000));
      const ProfileScope innermost("innermost");
      spin_for(std::chrono::microseconds(1000));
    }
  }
  const std::chrono::duration<double> wall = Clock::now() - start;
  ASSERT_EQ(profile.entries().size(), 3u);
  EXPECT_EQ(find(profile, "outer")->calls, 1);
  EXPECT_EQ(find(profile, "inner")->calls, 3);
  EXPECT_EQ(find(profile, "innermost")->calls, 3);
  // At least what was spun in each itself; together never more than there was.
  EXPECT_GE(profile.seconds_of("outer"), 200e-6);
  EXPECT_GE(profile.seconds_of("inner"), 3000e-6);
  EXPECT_GE(profile.seconds_of("innermost"), 3000e-6);
  EXPECT_LE(
      profile.seconds_of("outer") + profile.seconds_of("inner") + profile.seconds_of("innermost"),
      wall.count());
}

TEST(Profile, AnErrorClosesItsScopes) {
  Profile profile;
  try {
    const ProfileScope outer("outer");
    const ProfileScope inner("inner");
    throw 1;
  } catch (int) {
  }
  { const ProfileScope after("after"); }
  EXPECT_EQ(profile.entries().size(), 3u);
}

TEST(Profile, RecordsOnlyItsOwnThreadAndOnlyWhileItExists) {
  { const ProfileScope before("before"); }
  {
    Profile profile;
    std::thread([] { const ProfileScope other("other"); }).join();
    EXPECT_TRUE(profile.entries().empty());
    EXPECT_THROW(Profile second, std::logic_error);
    { const ProfileScope still("still"); }
    EXPECT_EQ(profile.entries().size(), 1u);
    profile.clear();
    EXPECT_TRUE(profile.entries().empty());
    EXPECT_EQ(profile.seconds_of("still"), 0.0);
  }
  Profile next;
  EXPECT_TRUE(next.entries().empty());
}

TEST(Profile, OpsNameThemselvesAndProductsTheirShape) {
  const auto device = Device::create_cpu(1);
  Workspace::Frame frame(*device);
  const Tensor x = frame.f32({6, 8});
  const Tensor weight = frame.f32({10, 8});
  const Tensor y = frame.f32({6, 10});
  const Tensor dx = frame.f32({6, 8});
  const Tensor dweight = frame.f32({10, 8});
  for (const Tensor& tensor : {x, weight, dweight}) fill(tensor, 0.5f);

  Profile profile;
  linear_forward(x, weight, y);
  linear_forward(x, weight, y);
  linear_backward_input(y, weight, dx);
  linear_backward_weight(y, x, dweight);
  fill(y, 0.0f);

  using Shape3 = std::array<std::int64_t, 3>;
  ASSERT_EQ(profile.entries().size(), 4u);
  EXPECT_STREQ(profile.entries()[0].op, "gemm_forward");
  EXPECT_EQ(profile.entries()[0].calls, 2);
  EXPECT_EQ(profile.entries()[0].shape, (Shape3{6, 10, 8}));
  EXPECT_STREQ(profile.entries()[1].op, "gemm_input_gradient");
  EXPECT_EQ(profile.entries()[1].shape, (Shape3{6, 8, 10}));
  EXPECT_STREQ(profile.entries()[2].op, "gemm_weight_gradient");
  EXPECT_EQ(profile.entries()[2].shape, (Shape3{10, 8, 6}));
  EXPECT_STREQ(profile.entries()[3].op, "fill");
}

TEST(Profile, HeadLossIsItsProductsAndTheCrossEntropy) {
  const auto device = Device::create_cpu(1);
  const Buffer targets = device->allocate(DType::i32, {6}, MemoryCategory::activations);
  Workspace::Frame frame(*device);
  HeadLoss head;
  head.hidden = frame.f32({6, 8});
  head.weight = frame.f32({10, 8});
  head.targets = targets.tensor();
  head.losses = frame.f32({6});
  head.chunk = 2;
  const Tensor dhidden = frame.f32({6, 8});
  const Tensor dweight = frame.f32({10, 8});
  for (const Tensor& tensor : {head.hidden, head.weight, dweight}) fill(tensor, 0.5f);

  Profile profile;
  head_loss_forward_backward(head, 1.0f, dhidden, dweight);
  ASSERT_NE(find(profile, "cross_entropy"), nullptr);
  EXPECT_EQ(find(profile, "cross_entropy")->calls, 3);
  EXPECT_EQ(find(profile, "gemm_forward")->calls, 3);
  EXPECT_EQ(find(profile, "gemm_input_gradient")->calls, 3);
  EXPECT_EQ(find(profile, "gemm_weight_gradient")->calls, 3);
}

}  // namespace
}  // namespace chaski
