#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "parallel/mpi/communicator.h"

// What moves tensors between GPUs. absent.cpp stands in where the program is built without it.
namespace chaski {

class GradientExchange;
class TensorChannel;
struct ChannelEnd;

bool is_built_with_nccl();
// E.g. "NCCL 2.28.9"; loads the library. Throws std::runtime_error where it cannot be loaded.
std::string nccl_version();

// As create_gradient_exchange and open_channel, for tensors of a GPU. Throw std::invalid_argument
// without NCCL.
std::unique_ptr<GradientExchange> create_nccl_exchange(Communicator& communicator,
                                                       const std::vector<int>& ranks, int stage,
                                                       Device& device, std::vector<Tensor> tensors);
std::unique_ptr<TensorChannel> open_nccl_channel(Communicator& communicator, Device& device,
                                                 const ChannelEnd& end);

}  // namespace chaski
