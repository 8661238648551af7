#include "parallel/reduction/gradient_exchange.h"

#include <algorithm>
#include <utility>

#include "parallel/membership/message_tags.h"
#include "parallel/nccl/nccl.h"
#include "parallel/reduction/segment_exchange.h"

namespace chaski {
namespace {

// Stands for NCCL's where there is none: counts what each round would send.
class CountedRing final : public GradientExchange {
 public:
  CountedRing(Communicator& communicator, const std::vector<int>& ranks, int stage)
      : communicator_(communicator), group_(std::ssize(ranks)), stage_(stage) {
    const auto self = std::find(ranks.begin(), ranks.end(), communicator.rank());
    next_ = self + 1 == ranks.end() ? ranks.front() : self[1];
  }

  void plan(std::span<const Tensor> tensors) override {
    bytes_ = 0;
    for (const Tensor& tensor : tensors) bytes_ += tensor.num_bytes();
  }
  void start(std::int64_t) override {}
  void advance() override {}
  void finish() override {
    communicator_.count_sent(bytes_per_round(), next_, reduce_scatter_tag(stage_));
  }
  void abort() noexcept override {}
  std::int64_t bytes_per_round() const override { return bytes_in_a_ring(bytes_, group_); }

 private:
  Communicator& communicator_;
  std::int64_t group_;
  int stage_;
  int next_;
  std::int64_t bytes_ = 0;
};

}  // namespace

std::unique_ptr<GradientExchange> create_gradient_exchange(Communicator& communicator,
                                                           std::vector<int> ranks, int stage,
                                                           Device& device) {
  if (device.backend() == Backend::cuda) {
    if (device.is_counting()) return std::make_unique<CountedRing>(communicator, ranks, stage);
    return create_nccl_exchange(communicator, std::move(ranks), stage, device);
  }
  return std::make_unique<SegmentExchange>(communicator, std::move(ranks), stage, device);
}

}  // namespace chaski
