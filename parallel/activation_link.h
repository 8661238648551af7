#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include "kernels/device.h"
#include "parallel/communicator.h"

namespace chaski {

// The two ends of a stream of [T, hidden_size] tensors between two slots, one tensor per
// micro-batch in ascending order: activations forward or gradients backward. What travels is
// decided here alone.

// The end that sends.
class SendLink {
 public:
  // With copies > 0 a tensor is copied into one of that many buffers and is free at once; with 0 it
  // is sent from where it is and must stay unchanged until reclaim().
  SendLink(Communicator& communicator, Device& device, int to_rank, int tag, Shape largest,
           int in_flight, int copies);

  void send(int micro_batch, const Tensor& tensor);
  // Waits until the tensor of micro-batch m has left, e.g. before its memory is written again.
  void reclaim(int micro_batch);
  void finish();
  // As Communicator::drain.
  bool drain(std::chrono::milliseconds limit) noexcept;

 private:
  Request& request_of(int micro_batch);

  Communicator& communicator_;
  int to_rank_;
  int tag_;
  std::vector<Buffer> copies_;
  std::vector<Request> requests_;
};

// The end that receives. Receives are posted as early as a buffer is free, so that a sender never
// waits for the receiver to come round to it.
class ReceiveLink {
 public:
  ReceiveLink(Communicator& communicator, Device& device, int from_rank, int tag, Shape largest,
              int num_buffers);

  // `shapes` of the step's tensors by micro-batch; posts the first receives.
  void begin(const std::vector<Shape>& shapes);
  // Waits for micro-batch m; the tensor is valid until release(m).
  Tensor receive(int micro_batch);
  void release(int micro_batch);
  // As Communicator::drain.
  bool drain(std::chrono::milliseconds limit) noexcept;

 private:
  void post(int micro_batch);
  std::size_t index_of(int micro_batch) const {
    return static_cast<std::size_t>(micro_batch) % buffers_.size();
  }

  Communicator& communicator_;
  int from_rank_;
  int tag_;
  std::vector<Buffer> buffers_;
  std::vector<Request> requests_;
  std::vector<Shape> shapes_;
};

}  // namespace chaski
