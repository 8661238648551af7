// The end of a stream of tensors between two GPUs: a group of two processes, with a stream of its
// own for this direction.

#include <algorithm>
#include <fmt/format.h>
#include <memory>
#include <vector>

#include "kernels/device/cuda_context.h"
#include "parallel/nccl/group.h"
#include "parallel/nccl/nccl.h"
#include "parallel/pipeline/tensor_channel.h"

namespace chaski {
namespace {

// A few are enough for the tensors between stages, and leave the GPU to those who compute.
constexpr int kMaxBlocks = 4;

nccl::GroupOptions group_options(int rank, const ChannelEnd& end) {
  const bool sends = end.direction == Direction::send;
  nccl::GroupOptions options;
  options.ranks = {std::min(rank, end.peer), std::max(rank, end.peer)};
  options.tag = end.tag;
  options.purpose = fmt::format("what rank {} sends to rank {}", sends ? rank : end.peer,
                                sends ? end.peer : rank);
  options.max_blocks = kMaxBlocks;
  return options;
}

class NcclChannel final : public TensorChannel {
 public:
  NcclChannel(Communicator& communicator, Device& device, const ChannelEnd& end)
      : device_(device),
        end_(end),
        group_(communicator, device, group_options(communicator.rank(), end)),
        transfers_(static_cast<std::size_t>(end.num_places)) {
    // One number is enough: NCCL opens all that a sender and a receiver need when they first meet,
    // whatever the size.
    Workspace::Frame frame(device_);
    const Tensor trial = frame.f32({1});
    group_.connect([&] {
      end_.direction == Direction::send ? group_.send(trial, end_.peer)
                                        : group_.receive(trial, end_.peer);
    });
  }

  void start(int place, const Tensor& tensor) override {
    Transfer& s = transfers_[static_cast<std::size_t>(place)];
    s.tensor = tensor;
    if (end_.direction == Direction::send) {
      group_.follow_device();
      group_.send(tensor, end_.peer);
      s.done.record(group_.stream());
    } else {
      s.free.record(cuda::stream_of(device_));
    }
  }

  // A receive is given to NCCL only here, by a host that is ahead of its GPU: it is a kernel that
  // holds a part of the GPU until the sender comes, and whatever waits for the whole device
  // meanwhile (memory that is freed, a kernel's code that is loaded) waits for the sender, too; two
  // processes could wait like that for each other.
  void wait(int place) override {
    Transfer& s = transfers_[static_cast<std::size_t>(place)];
    if (s.tensor.empty()) return;
    if (end_.direction == Direction::receive) {
      s.free.hold(group_.stream());
      group_.receive(s.tensor, end_.peer);
      s.done.record(group_.stream());
    }
    group_.wait(s.done);
    s.tensor = Tensor();
  }

  void abort() noexcept override {
    group_.abort();
    for (Transfer& s : transfers_) s.tensor = Tensor();
  }

 private:
  struct Transfer {
    Tensor tensor;     // empty: free
    nccl::Event free;  // where the device was when its memory was given to a receive
    nccl::Event done;
  };

  Device& device_;
  ChannelEnd end_;
  nccl::Group group_;
  std::vector<Transfer> transfers_;
};

}  // namespace

std::unique_ptr<TensorChannel> open_nccl_channel(Communicator& communicator, Device& device,
                                                 const ChannelEnd& end) {
  return std::make_unique<NcclChannel>(communicator, device, end);
}

}  // namespace chaski
