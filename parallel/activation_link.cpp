#include "parallel/activation_link.h"

#include <stdexcept>
#include <utility>

#include "kernels/elementwise.h"

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

std::vector<Buffer> allocate(Device& device, Shape shape, int count) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < count; ++i) {
    buffers.push_back(device.allocate(DType::f32, shape, MemoryCategory::communication));
  }
  return buffers;
}

}  // namespace

SendLink::SendLink(Communicator& communicator, Device& device, int to_rank, int tag, Shape largest,
                   int in_flight, int copies)
    : communicator_(communicator),
      to_rank_(to_rank),
      tag_(tag),
      copies_(allocate(device, largest, copies)),
      requests_(static_cast<std::size_t>(copies > 0 ? copies : in_flight)) {}

Request& SendLink::request_of(int micro_batch) {
  return requests_[static_cast<std::size_t>(micro_batch) % requests_.size()];
}

void SendLink::send(int micro_batch, const Tensor& tensor) {
  reclaim(micro_batch);
  Tensor message = tensor;
  if (!copies_.empty()) {
    message =
        first_part(copies_[static_cast<std::size_t>(micro_batch) % copies_.size()], tensor.shape());
    copy(tensor, message);
  }
  request_of(micro_batch) = communicator_.isend(message, to_rank_, tag_);
}

void SendLink::reclaim(int micro_batch) {
  communicator_.wait(request_of(micro_batch));
}

void SendLink::finish() {
  communicator_.wait_all(requests_);
}

bool SendLink::drain(std::chrono::milliseconds limit) noexcept {
  return communicator_.drain(requests_, limit);
}

ReceiveLink::ReceiveLink(Communicator& communicator, Device& device, int from_rank, int tag,
                         Shape largest, int num_buffers)
    : communicator_(communicator),
      from_rank_(from_rank),
      tag_(tag),
      buffers_(allocate(device, largest, num_buffers)),
      requests_(static_cast<std::size_t>(num_buffers)) {}

void ReceiveLink::begin(const std::vector<Shape>& shapes) {
  shapes_ = shapes;
  for (int m = 0; m < std::ssize(buffers_); ++m) post(m);
}

void ReceiveLink::post(int micro_batch) {
  if (micro_batch >= std::ssize(shapes_)) return;
  const std::size_t index = index_of(micro_batch);
  const Tensor target = first_part(buffers_[index], shapes_[static_cast<std::size_t>(micro_batch)]);
  requests_[index] = communicator_.irecv(target, from_rank_, tag_);
}

Tensor ReceiveLink::receive(int micro_batch) {
  const std::size_t index = index_of(micro_batch);
  communicator_.wait(requests_[index]);
  return first_part(buffers_[index], shapes_[static_cast<std::size_t>(micro_batch)]);
}

void ReceiveLink::release(int micro_batch) {
  post(micro_batch + static_cast<int>(buffers_.size()));
}

bool ReceiveLink::drain(std::chrono::milliseconds limit) noexcept {
  return communicator_.drain(requests_, limit);
}

}  // namespace chaski
