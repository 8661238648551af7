#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// An all-reduce (sum) in place of a list of tensors over a group of processes, a round a step, over
// messages from a CPU's memory, by NCCL from a GPU's. What it promises about bits: every process
// gets the same ones.
class GradientExchange {
 public:
  virtual ~GradientExchange() = default;

  // Tensors 0 … count - 1 may be sent; counts only grow during a round.
  virtual void start(std::int64_t count) = 0;
  // Moves what can be moved without waiting. Throws PeerFailure.
  virtual void advance() = 0;
  // Waits until all tensors hold the sums. Ends the round. Throws PeerFailure.
  virtual void finish() = 0;
  // Ends the round whatever its state, and what is in flight; the process where that does not end.
  // To be destroyed is all that is left for the exchange.
  virtual void abort() noexcept = 0;

  virtual std::int64_t bytes_per_round() const = 0;  // sent by this process
};

// What each process sends to the next one of a ring of `group` in which tensors of so many bytes
// are summed: it passes on all but its own share, once to be summed and once more as a sum.
inline std::int64_t bytes_in_a_ring(std::int64_t bytes, std::int64_t group) {
  return 2 * bytes * (group - 1) / group;
}

// `ranks` ascending, at least two, this process among them. `stage` keeps exchanges apart that the
// same processes have at a time. `tensors` of a round have the same shapes on all processes. On
// GPUs all of the group must call it at a time, and what the tensors hold is lost. For a GPU that
// only counts: what NCCL would send in a ring. Throws std::invalid_argument where the program
// cannot.
std::unique_ptr<GradientExchange> create_gradient_exchange(Communicator& communicator,
                                                           const std::vector<int>& ranks, int stage,
                                                           Device& device,
                                                           std::vector<Tensor> tensors);

}  // namespace chaski
