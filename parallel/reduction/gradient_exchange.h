#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// An all-reduce (sum) in place of a list of tensors over a group of processes, a round a step. What
// it promises about bits: every process gets the same ones.
class GradientExchange {
 public:
  virtual ~GradientExchange() = default;

  // The tensors of a round, the same shapes on all processes. Nothing may be in flight. On GPUs as
  // connect().
  virtual void plan(std::span<const Tensor> tensors) = 0;
  // To be called by all before the first round after abort(); at once where nothing is to be done.
  // On GPUs all of the group must call it at a time, and what the tensors hold is lost.
  virtual void connect() {}

  // Tensors 0 … count - 1 may be sent; counts only grow during a round.
  virtual void start(std::int64_t count) = 0;
  // Moves what can be moved without waiting. Throws PeerFailure.
  virtual void advance() = 0;
  // Waits until all tensors hold the sums. Ends the round. Throws PeerFailure.
  virtual void finish() = 0;
  // Ends the round whatever its state, and what is in flight; the process where that does not end.
  virtual void abort() noexcept = 0;

  virtual std::int64_t bytes_per_round() const = 0;  // sent by this process
};

// Over messages from a CPU's memory, by NCCL from a GPU's. `ranks` ascending, at least two, this
// process among them. `stage` keeps exchanges apart that the same processes have at a time. Throws
// std::invalid_argument where the program cannot.
std::unique_ptr<GradientExchange> create_gradient_exchange(Communicator& communicator,
                                                           std::vector<int> ranks, int stage,
                                                           Device& device);

}  // namespace chaski
