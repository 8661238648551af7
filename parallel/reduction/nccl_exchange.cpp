// The exchange of gradients on GPUs: one all-reduce of NCCL for each tensor, as soon as it is
// ready, beside what the device computes.

#include <algorithm>
#include <fmt/format.h>
#include <set>
#include <utility>
#include <vector>

#include "parallel/membership/message_tags.h"
#include "parallel/nccl/group.h"
#include "parallel/nccl/nccl.h"
#include "parallel/reduction/gradient_exchange.h"

namespace chaski {
namespace {

nccl::GroupOptions group_options(const std::vector<int>& ranks, int stage) {
  nccl::GroupOptions options;
  options.ranks = ranks;
  options.tag = reduce_scatter_tag(stage);
  options.purpose = fmt::format("the gradients of stage {}", stage);
  return options;
}

class NcclExchange final : public GradientExchange {
 public:
  NcclExchange(Communicator& communicator, const std::vector<int>& ranks, int stage, Device& device,
               std::vector<Tensor> tensors)
      : group_(communicator, device, group_options(ranks, stage)), tensors_(std::move(tensors)) {
    group_.connect([this] { try_sizes(); });
  }

  void start(std::int64_t count) override {
    if (count <= num_started_) return;
    group_.follow_device();
    for (; num_started_ < count; ++num_started_) {
      group_.all_reduce_sum(tensors_[static_cast<std::size_t>(num_started_)]);
    }
  }

  void advance() override { group_.check_health(); }

  void finish() override {
    done_.record(group_.stream());
    group_.wait(done_);
    num_started_ = 0;
  }

  void abort() noexcept override { group_.abort(); }

  // Of a ring, as NCCL would by default.
  std::int64_t bytes_per_round() const override {
    std::int64_t bytes = 0;
    for (const Tensor& tensor : tensors_) bytes += tensor.num_bytes();
    return bytes_in_a_ring(bytes, group_.size());
  }

 private:
  // NCCL chooses by type and size how to sum, and opens what a way of summing needs when it first
  // takes it (NCCL_RUNTIME_CONNECT). So each size is summed once while no backward pass runs.
  void try_sizes() {
    std::set<std::pair<DType, std::int64_t>> tried;
    for (const Tensor& tensor : tensors_) {
      if (tried.emplace(tensor.dtype(), tensor.num_elements()).second) {
        group_.all_reduce_sum(tensor);
      }
    }
  }

  nccl::Group group_;
  nccl::Event done_;
  std::vector<Tensor> tensors_;
  std::int64_t num_started_ = 0;
};

}  // namespace

std::unique_ptr<GradientExchange> create_nccl_exchange(Communicator& communicator,
                                                       const std::vector<int>& ranks, int stage,
                                                       Device& device,
                                                       std::vector<Tensor> tensors) {
  return std::make_unique<NcclExchange>(communicator, ranks, stage, device, std::move(tensors));
}

}  // namespace chaski
