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
  CountedRing(Communicator& communicator, const std::vector<int>& ranks, int stage,
              const std::vector<Tensor>& tensors)
      : communicator_(communicator), stage_(stage) {
    std::int64_t bytes = 0;
    for (const Tensor& tensor : tensors) bytes += tensor.num_bytes();
    bytes_per_round_ = bytes_in_a_ring(bytes, std::ssize(ranks));
    const auto self = std::find(ranks.begin(), ranks.end(), communicator.rank());
    next_ = self + 1 == ranks.end() ? ranks.front() : self[1];
  }

  void start(std::int64_t) override {}
  void advance() override {}
  void finish() override {
    communicator_.count_sent(bytes_per_round_, next_, reduce_scatter_tag(stage_));
  }
  void abort() noexcept override {}
  std::int64_t bytes_per_round() const override { return bytes_per_round_; }

 private:
  Communicator& communicator_;
  int stage_;
  int next_;
  std::int64_t bytes_per_round_;
};

}  // namespace

std::unique_ptr<GradientExchange> create_gradient_exchange(Communicator& communicator,
                                                           const std::vector<int>& ranks, int stage,
                                                           Device& device,
                                                           std::vector<Tensor> tensors) {
  if (device.backend() == Backend::cpu) {
    return std::make_unique<SegmentExchange>(communicator, ranks, stage, device, tensors);
  }
  if (device.is_counting()) {
    return std::make_unique<CountedRing>(communicator, ranks, stage, tensors);
  }
  return create_nccl_exchange(communicator, ranks, stage, device, std::move(tensors));
}

}  // namespace chaski
