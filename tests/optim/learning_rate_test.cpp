#include "optim/learning_rate.h"

#include <cmath>
#include <gtest/gtest.h>
#include <numbers>

namespace chaski {
namespace {

LearningRateSchedule schedule(DecayKind kind) {
  LearningRateSchedule result;
  result.kind = kind;
  result.peak = 2.0;
  result.steps = 101;
  result.warmup_steps = 10;
  result.decay_steps = kind == DecayKind::warmup_stable_decay ? 20 : 0;
  result.min_lr_ratio = 0.1;
  return result;
}

TEST(ScheduleTest, WarmUpIsLinearFromTheFirstStep) {
  for (const DecayKind kind : {DecayKind::constant, DecayKind::linear, DecayKind::cosine,
                               DecayKind::warmup_stable_decay}) {
    EXPECT_DOUBLE_EQ(schedule(kind).at(0), 0.2);
    EXPECT_DOUBLE_EQ(schedule(kind).at(4), 1.0);
    EXPECT_DOUBLE_EQ(schedule(kind).at(9), 2.0);
  }
}

TEST(ScheduleTest, EndsAtTheFloorExactly) {
  EXPECT_DOUBLE_EQ(schedule(DecayKind::constant).at(100), 2.0);
  for (const DecayKind kind :
       {DecayKind::linear, DecayKind::cosine, DecayKind::warmup_stable_decay}) {
    EXPECT_DOUBLE_EQ(schedule(kind).at(100), 0.2);
    EXPECT_GT(schedule(kind).at(99), 0.2);
  }
}

TEST(ScheduleTest, MiddleOfTheDecayByHand) {
  // Decay from step 10 (the peak) over 90 steps to step 100; its middle is step 55.
  EXPECT_NEAR(schedule(DecayKind::linear).at(55), 2.0 * (1 - 0.9 * 0.5), 1e-12);
  EXPECT_NEAR(schedule(DecayKind::cosine).at(55), 2.0 * (0.1 + 0.9 * 0.5), 1e-12);
  EXPECT_NEAR(schedule(DecayKind::cosine).at(40),
              2.0 * (0.1 + 0.9 * 0.5 * (1 + std::cos(std::numbers::pi / 3))), 1e-12);
  EXPECT_DOUBLE_EQ(schedule(DecayKind::warmup_stable_decay).at(80), 2.0);
  EXPECT_NEAR(schedule(DecayKind::warmup_stable_decay).at(90), 2.0 * (1 - 0.9 * 0.5), 1e-12);
}

TEST(ScheduleTest, WithoutWarmUpTheFirstStepHasThePeak) {
  LearningRateSchedule cosine = schedule(DecayKind::cosine);
  cosine.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(cosine.at(0), 2.0);
  EXPECT_DOUBLE_EQ(cosine.at(100), 0.2);
}

TEST(ScheduleTest, NonsenseIsRefused) {
  LearningRateSchedule wrong = schedule(DecayKind::cosine);
  wrong.warmup_steps = 102;
  EXPECT_THROW(wrong.validate(), std::invalid_argument);
  wrong = schedule(DecayKind::warmup_stable_decay);
  wrong.decay_steps = 92;
  EXPECT_THROW(wrong.validate(), std::invalid_argument);
  wrong = schedule(DecayKind::cosine);
  wrong.min_lr_ratio = 1.5;
  EXPECT_THROW(wrong.validate(), std::invalid_argument);
  schedule(DecayKind::cosine).validate();
}

}  // namespace
}  // namespace chaski
