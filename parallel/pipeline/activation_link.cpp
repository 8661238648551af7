#include "parallel/pipeline/activation_link.h"

#include <stdexcept>

#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

// The beginning of a buffer under the shape of a possibly smaller tensor.
Tensor first_part(const Buffer& buffer, Shape shape) {
  const Tensor& whole = buffer.tensor();
  if (shape.num_elements() > whole.num_elements()) {
    throw std::logic_error("a message of " + shape.to_string() + " for a buffer of " +
                           whole.shape().to_string());
  }
  return Tensor(whole.device(), whole.dtype(), shape, whole.raw());
}

std::vector<Buffer> allocate(Device& device, const LinkOptions& options, int count) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < count; ++i) {
    buffers.push_back(
        device.allocate(options.dtype, options.largest, MemoryCategory::communication));
  }
  return buffers;
}

}  // namespace

SendLink::SendLink(Communicator& communicator, Device& device, const LinkOptions& options,
                   int in_flight, int copies)
    : num_places_(copies > 0 ? copies : in_flight),
      copies_(allocate(device, options, copies)),
      channel_(open_channel(communicator, device,
                            {Direction::send, options.peer, options.tag, num_places_})) {}

void SendLink::send(int micro_batch, const Tensor& tensor) {
  reclaim(micro_batch);
  const int place = micro_batch % num_places_;
  Tensor message = tensor;
  if (!copies_.empty()) {
    message = first_part(copies_[static_cast<std::size_t>(place)], tensor.shape());
    copy(tensor, message);
  }
  channel_->start(place, message);
}

void SendLink::reclaim(int micro_batch) {
  channel_->wait(micro_batch % num_places_);
}

void SendLink::finish() {
  for (int place = 0; place < num_places_; ++place) channel_->wait(place);
}

ReceiveLink::ReceiveLink(Communicator& communicator, Device& device, const LinkOptions& options,
                         int num_buffers)
    : buffers_(allocate(device, options, num_buffers)),
      channel_(open_channel(communicator, device,
                            {Direction::receive, options.peer, options.tag, num_buffers})) {}

void ReceiveLink::begin(const std::vector<Shape>& shapes) {
  shapes_ = shapes;
  for (int m = 0; m < std::ssize(buffers_); ++m) post(m);
}

Tensor ReceiveLink::target(int micro_batch) const {
  return first_part(buffers_[static_cast<std::size_t>(place_of(micro_batch))],
                    shapes_[static_cast<std::size_t>(micro_batch)]);
}

void ReceiveLink::post(int micro_batch) {
  if (micro_batch >= std::ssize(shapes_)) return;
  channel_->start(place_of(micro_batch), target(micro_batch));
}

Tensor ReceiveLink::receive(int micro_batch) {
  channel_->wait(place_of(micro_batch));
  return target(micro_batch);
}

void ReceiveLink::release(int micro_batch) {
  post(micro_batch + static_cast<int>(buffers_.size()));
}

}  // namespace chaski
