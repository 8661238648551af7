#include "parallel/reduction/gradient_exchange.h"

#include <utility>

#include "parallel/nccl/nccl.h"
#include "parallel/reduction/segment_exchange.h"

namespace chaski {

std::unique_ptr<GradientExchange> create_gradient_exchange(Communicator& communicator,
                                                           std::vector<int> ranks, int stage,
                                                           Device& device) {
  if (device.backend() == Backend::cuda) {
    return create_nccl_exchange(communicator, std::move(ranks), stage, device);
  }
  return std::make_unique<SegmentExchange>(communicator, std::move(ranks), stage, device);
}

}  // namespace chaski
