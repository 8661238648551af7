// What exchanges tensors between GPUs, on the execution model and its false NCCL: rounds that are
// given up and begun anew, types, and what is refused. Run under mpirun.
#include <chrono>
#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

#include "kernels/elementwise/elementwise.h"
#include "mpi_session.h"
#include "parallel/nccl/group.h"
#include "parallel/pipeline/tensor_channel.h"
#include "parallel/reduction/gradient_reducer.h"
#include "tests/cuda_model/control.h"

namespace chaski {
namespace {

constexpr std::int64_t kElements = 100;
constexpr int kParameters = 6;
constexpr int kTurnTag = 9;

using ::testing::HasSubstr;

class Gpu : public testing::Test {
 protected:
  // Who waits for somebody that waits for him says so.
  Gpu() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    communicator_.set_wait_callback([deadline] {
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("waits for ever");
    });
  }

  Communicator communicator_{mpi_session()};
  std::unique_ptr<Device> device_ = Device::create_cuda(communicator_.rank());

  std::vector<int> all_ranks() const {
    std::vector<int> ranks(static_cast<std::size_t>(communicator_.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  int sum_of_ranks() const { return communicator_.size() * (communicator_.size() + 1) / 2; }
};

class GpuReduction : public Gpu {
 protected:
  explicit GpuReduction(const TensorTypes& types = {}) : parameters_(*device_, types) {
    for (int i = 0; i < kParameters; ++i) {
      parameters_.add("p" + std::to_string(i), ParameterKind::ffn, i, {kElements});
    }
    parameters_.allocate();
    parameters_.allocate_gradients([](const Parameter&) { return true; });
    reducer_ = std::make_unique<GradientReducer>(communicator_, all_ranks(), 0, parameters_);
  }

  // Gives up the round and begins anew, as after a failure: on another communicator.
  void begin_anew() {
    reducer_->abort();
    reducer_.reset();
    fresh_ = std::make_unique<Communicator>(mpi_session());
    reducer_ = std::make_unique<GradientReducer>(*fresh_, all_ranks(), 0, parameters_);
  }

  // A backward pass; every element of parameter i becomes (rank + 1) · (i + 1).
  void run_passes(int first) {
    for (int i = kParameters - 1; i >= first; --i) {
      fill(parameters_[i].gradient, static_cast<float>((communicator_.rank() + 1) * (i + 1)));
      reducer_->gradients_ready(i, 1);
    }
  }
  // Rank 0's whole pass comes before the others'.
  void run_passes_one_after_another() {
    char byte = 0;
    if (communicator_.rank() > 0) {
      Request request = communicator_.irecv(&byte, 1, 0, kTurnTag);
      communicator_.wait(request);
    }
    run_passes(0);
    for (int to = 1; communicator_.rank() == 0 && to < communicator_.size(); ++to) {
      Request request = communicator_.isend(&byte, 1, to, kTurnTag);
      communicator_.wait(request);
    }
  }
  void allocate_gradients_from(std::int64_t first) {
    parameters_.allocate_gradients(
        [&](const Parameter& p) { return parameters_.index_of(p.name) >= first; });
  }
  void expect_sums() {
    reducer_->finish();
    for (int i = 0; i < kParameters; ++i) {
      EXPECT_EQ(sum(parameters_[i].gradient),
                static_cast<double>(kElements * (i + 1) * sum_of_ranks()));
    }
  }

  ParameterSet parameters_;
  std::unique_ptr<Communicator> fresh_;
  std::unique_ptr<GradientReducer> reducer_;
};

class GpuReductionInBf16 : public GpuReduction {
 protected:
  GpuReductionInBf16() : GpuReduction(types_of(Precision::bf16_pure)) {}
};

TEST_F(GpuReduction, SumsOverTheRanks) {
  EXPECT_GT(reducer_->num_buckets(), 1);
  EXPECT_GT(reducer_->bytes_per_step(), 0);
  for (int step = 0; step < 3; ++step) {
    run_passes(0);
    expect_sums();
  }
}

// On the same communicator and on others, with nothing left of the one before.
TEST_F(GpuReduction, MayBeMadeAnewBetweenSteps) {
  run_passes(0);
  expect_sums();
  const MemoryUsage before = device_->memory();
  for (int step = 0; step < 4; ++step) {
    run_passes(0);
    expect_sums();
    reducer_.reset();
    if (step % 2 == 1) fresh_ = std::make_unique<Communicator>(mpi_session());
    reducer_ = std::make_unique<GradientReducer>(fresh_ ? *fresh_ : communicator_, all_ranks(), 0,
                                                 parameters_);
    EXPECT_EQ(device_->memory().current_bytes, before.current_bytes);
  }
  reducer_.reset();
}

TEST_F(GpuReductionInBf16, SumsOverTheRanks) {
  run_passes(0);
  expect_sums();
}

TEST_F(GpuReduction, ARoundThatWasGivenUpIsBegunAnew) {
  for (const int first : {0, 3, kParameters}) {
    run_passes(first + communicator_.rank() % 2);  // some are further than others
    begin_anew();
    run_passes(0);
    expect_sums();
  }
}

TEST_F(GpuReduction, NobodyWaitsForTheOthersBeforeHeMust) {
  run_passes_one_after_another();
  expect_sums();
  begin_anew();
  run_passes_one_after_another();
  expect_sums();
}

TEST_F(GpuReduction, NorWhereOtherParametersAreFrozen) {
  allocate_gradients_from(kParameters - 2);
  begin_anew();
  EXPECT_EQ(reducer_->num_buckets(), 2);
  allocate_gradients_from(0);
  begin_anew();  // with larger buckets
  EXPECT_LT(reducer_->num_buckets(), kParameters);
  run_passes_one_after_another();
  expect_sums();
}

class GpuChannel : public Gpu {
 protected:
  static constexpr int kSlots = 2;

  void SetUp() override {
    open(communicator_);
    for (int i = 0; i < kSlots; ++i) {
      tensors_.push_back(
          device_->allocate(DType::bf16, {kElements}, MemoryCategory::communication));
    }
  }
  void open(Communicator& communicator) {
    if (communicator.rank() > 1) return;  // two are enough
    const auto direction = communicator.rank() == 0 ? Direction::send : Direction::receive;
    channel_ =
        open_channel(communicator, *device_, {direction, 1 - communicator.rank(), 5, kSlots});
  }
  void exchange(int count) {
    const bool sends = communicator_.rank() == 0;
    for (int i = 0; i < count; ++i) {
      const Tensor& tensor = tensors_[static_cast<std::size_t>(i % kSlots)].tensor();
      channel_->wait(i % kSlots);
      if (sends) fill(tensor, static_cast<float>(i + 1));
      channel_->start(i % kSlots, tensor);
      if (sends) continue;
      channel_->wait(i % kSlots);
      EXPECT_EQ(sum(tensor), static_cast<double>(kElements * (i + 1)));
    }
    for (int i = 0; i < kSlots; ++i) channel_->wait(i);
  }

  std::vector<Buffer> tensors_;
  std::unique_ptr<TensorChannel> channel_;
};

TEST_F(GpuChannel, TensorsArriveInOrder) {
  if (channel_) exchange(7);
}

TEST_F(GpuChannel, WhatWasGivenUpIsBegunAnew) {
  Communicator fresh(mpi_session());
  if (!channel_) return;
  exchange(1);
  if (communicator_.rank() == 0) channel_->start(0, tensors_[0].tensor());  // nobody receives it
  channel_->abort();
  open(fresh);
  exchange(3);
  channel_.reset();
}

class GpuGroup : public Gpu {
 protected:
  void TearDown() override { cuda_model::set_nccl_abort(cuda_model::NcclAbort::kEnds); }

  // Rank 0 sends something that rank 1 does not receive, and gives it up.
  void expect_stuck(cuda_model::NcclAbort abort) {
    if (communicator_.rank() > 1) return;
    const bool sends = communicator_.rank() == 0;
    std::string told;
    nccl::GroupOptions options;
    options.ranks = {0, 1};
    options.tag = 6;
    options.purpose = "a test";
    options.abort_limit = std::chrono::milliseconds(100);
    options.on_stuck = [&](const std::string& what) { told = what; };
    nccl::Group group(communicator_, *device_, options);
    const Buffer buffer = device_->allocate(DType::f32, {4}, MemoryCategory::communication);
    const auto exchange = [&] {
      sends ? group.send(buffer.tensor(), 1) : group.receive(buffer.tensor(), 0);
    };
    group.connect(exchange);
    if (!sends) {
      group.abort();
      EXPECT_EQ(told, "");
      return;
    }
    exchange();
    cuda_model::set_nccl_abort(abort);
    group.abort();
    EXPECT_THAT(told, HasSubstr("on rank 0, of ranks 0, 1 for a test, had not ended 0.1 s after"));
    EXPECT_THAT(told, HasSubstr("\nhint: "));
    cuda_model::set_nccl_abort(cuda_model::NcclAbort::kEnds);
    while (cudaStreamQuery(group.stream()) == cudaErrorNotReady) usleep(100);
  }
};

TEST_F(GpuGroup, AKernelThatDoesNotEndIsToldAndNotWaitedFor) {
  expect_stuck(cuda_model::NcclAbort::kLeaves);
}

TEST_F(GpuGroup, AnAbortThatDoesNotReturnIsToldAndNotWaitedFor) {
  expect_stuck(cuda_model::NcclAbort::kHangs);
}

TEST_F(Gpu, MessagesAreOfHostMemory) {
  const Buffer buffer = device_->allocate(DType::f32, {4}, MemoryCategory::communication);
  EXPECT_THROW(communicator_.isend(buffer.tensor(), 0, 1), std::logic_error);
  EXPECT_THROW(communicator_.irecv(buffer.tensor(), 0, 1), std::logic_error);
}

}  // namespace
}  // namespace chaski
