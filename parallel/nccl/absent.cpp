#include <stdexcept>

#include "parallel/nccl/nccl.h"

namespace chaski {
namespace {

[[noreturn]] void refuse() {
  throw std::invalid_argument(
      "several processes exchange tensors of GPUs through NCCL, without which this program was "
      "built\nhint: start one process, set device.backend = \"cpu\", or build where nccl.h and "
      "libnccl are found");
}

}  // namespace

bool is_built_with_nccl() {
  return false;
}

std::string nccl_version() {
  refuse();
}

std::unique_ptr<GradientExchange> create_nccl_exchange(Communicator&, const std::vector<int>&, int,
                                                       Device&, std::vector<Tensor>) {
  refuse();
}

std::unique_ptr<TensorChannel> open_nccl_channel(Communicator&, Device&, const ChannelEnd&) {
  refuse();
}

}  // namespace chaski
