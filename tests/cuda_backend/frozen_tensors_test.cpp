// What a save reads of a GPU and of host memory at the same time, on the execution model.

#include "fault/checkpoint/frozen_tensors.h"

#include <cstring>
#include <gtest/gtest.h>

#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

class MixedTensors : public ::testing::Test {
 protected:
  MixedTensors()
      : gpu_(Device::create_cuda(0)),
        host_(Device::create_cpu(1)),
        count_(host_->allocate(DType::i64, {}, MemoryCategory::optimizer)),
        moment_(gpu_->allocate(DType::f32, {3}, MemoryCategory::optimizer)) {
    set(7, {1.0f, 2.0f, 3.0f});
  }

  void set(std::int64_t count, std::vector<float> moment) {
    *count_.tensor().i64() = count;
    copy_from_host(moment.data(), moment_.tensor());
    gpu_->synchronize();
  }

  // Counts first: what comes first does not decide for all.
  std::vector<NamedTensor> tensors() const {
    return {{"count", count_.tensor()}, {"moment", moment_.tensor()}};
  }

  static void expect_saved(const std::vector<TensorRecord>& records) {
    std::int64_t count = 0;
    std::memcpy(&count, records[0].read(0, sizeof(count)), sizeof(count));
    EXPECT_EQ(count, 7);
    for (std::int64_t i = 0; i < 3; ++i) {
      float element = 0.0f;
      std::memcpy(&element, records[1].read(4 * i, 4), 4);
      EXPECT_EQ(element, static_cast<float>(i + 1));
    }
  }

  std::unique_ptr<Device> gpu_;
  std::unique_ptr<Device> host_;
  Buffer count_;
  Buffer moment_;
};

TEST_F(MixedTensors, AreReadFromWhereTheyLie) {
  FrozenTensors frozen(tensors());
  expect_saved(frozen.records());
  expect_saved(live_records(tensors()));
}

TEST_F(MixedTensors, AreKeptFromWhereTheyLie) {
  FrozenTensors frozen(tensors());
  ASSERT_TRUE(frozen.keep(2));
  set(8, {4.0f, 5.0f, 6.0f});
  expect_saved(frozen.records());
}

}  // namespace
}  // namespace chaski
