#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/device/device.h"
#include "parallel/mpi/communicator.h"
#include "parallel/pipeline/tensor_channel.h"

namespace chaski {

// The two ends of a stream of [T, hidden_size] tensors between two slots of the roster, one tensor
// per micro-batch in ascending order: activations forward or gradients backward. What travels is
// decided here alone, how by the channel; they are made as channels are opened (open_channel).

struct LinkOptions {
  int peer = -1;  // rank of the other end
  int tag = 0;
  DType dtype = DType::f32;
  Shape largest;  // of a tensor
};

// The end that sends.
class SendLink {
 public:
  // With copies > 0 a tensor is copied into one of that many buffers and is free at once; with 0 it
  // is sent from where it is and must stay unchanged until reclaim().
  SendLink(Communicator& communicator, Device& device, const LinkOptions& options, int in_flight,
           int copies);

  void send(int micro_batch, const Tensor& tensor);
  // Waits until the tensor of micro-batch m has left, e.g. before its memory is written again.
  void reclaim(int micro_batch);
  void finish();
  // As TensorChannel::abort.
  void abort() noexcept { channel_->abort(); }

 private:
  int num_places_;
  std::vector<Buffer> copies_;
  std::unique_ptr<TensorChannel> channel_;
};

// The end that receives. Receives are posted as early as a buffer is free, so that a sender never
// waits for the receiver to come round to it.
class ReceiveLink {
 public:
  ReceiveLink(Communicator& communicator, Device& device, const LinkOptions& options,
              int num_buffers);

  // `shapes` of the step's tensors by micro-batch; posts the first receives.
  void begin(const std::vector<Shape>& shapes);
  // Waits for micro-batch m; the tensor is valid until release(m).
  Tensor receive(int micro_batch);
  void release(int micro_batch);
  // As TensorChannel::abort.
  void abort() noexcept { channel_->abort(); }

 private:
  void post(int micro_batch);
  int place_of(int micro_batch) const { return micro_batch % static_cast<int>(buffers_.size()); }
  Tensor target(int micro_batch) const;

  std::vector<Buffer> buffers_;
  std::unique_ptr<TensorChannel> channel_;
  std::vector<Shape> shapes_;
};

}  // namespace chaski
