#include "parallel/pipeline/tensor_channel.h"

#include <vector>

#include "parallel/nccl/nccl.h"

namespace chaski {
namespace {

class MessageChannel final : public TensorChannel {
 public:
  MessageChannel(Communicator& communicator, const ChannelEnd& end)
      : communicator_(communicator),
        end_(end),
        requests_(static_cast<std::size_t>(end.num_places)) {}

  void start(int place, const Tensor& tensor) override {
    requests_[static_cast<std::size_t>(place)] =
        end_.direction == Direction::send ? communicator_.isend(tensor, end_.peer, end_.tag)
                                          : communicator_.irecv(tensor, end_.peer, end_.tag);
  }

  void wait(int place) override { communicator_.wait(requests_[static_cast<std::size_t>(place)]); }

  void abort() noexcept override {
    for (Request& request : requests_) request.give_up();
  }

 private:
  Communicator& communicator_;
  ChannelEnd end_;
  std::vector<Request> requests_;
};

}  // namespace

std::unique_ptr<TensorChannel> open_channel(Communicator& communicator, Device& device,
                                            const ChannelEnd& end) {
  if (device.backend() == Backend::cuda && !device.is_counting())
    return open_nccl_channel(communicator, device, end);
  return std::make_unique<MessageChannel>(communicator, end);
}

}  // namespace chaski
