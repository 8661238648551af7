#pragma once

#include <memory>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

enum class Direction { send, receive };

// One process's end of a one-way stream of tensors to or from another process.
struct ChannelEnd {
  Direction direction = Direction::send;
  int peer = -1;       // rank
  int tag = 0;         // of the messages; the same on both ends, and no other channel's
  int num_places = 1;  // tensors on their way at a time
};

// How tensors travel: over MPI from a CPU's memory, by NCCL from a GPU's. Tensors arrive in the
// order in which they were sent; both ends must name the same type and number of elements. A place
// (0 … num_places - 1) is the caller's name for a tensor on its way.
class TensorChannel {
 public:
  virtual ~TensorChannel() = default;

  // Begins to send or to receive a tensor, whose memory must be left alone until wait(place). The
  // place must be free: never used, or waited for. What is queued on the device may still write
  // what is sent, or read what was there before what is received.
  virtual void start(int place, const Tensor& tensor) = 0;
  // Waits until the place's tensor has left, or has arrived for all that is queued on the device
  // from now on. Received tensors are waited for in the order in which they were started. At once
  // where the place is free. Throws PeerFailure.
  virtual void wait(int place) = 0;
  // Gives up what is on its way and ends it, or, where a peer or the device hangs, the process.
  // Destroying the channel does the same, and is all that may be done with it afterwards.
  virtual void abort() noexcept = 0;
};

// Joins the ends. May wait for the other one: who has several opens them in ascending order of
// their tags. Throws PeerFailure.
std::unique_ptr<TensorChannel> open_channel(Communicator& communicator, Device& device,
                                            const ChannelEnd& end);

}  // namespace chaski
