#include "kernels/device/op_graph.h"

#include <stdexcept>
#include <utility>

namespace chaski {

OpKey& OpKey::add(const Tensor& tensor) {
  return add(tensor.empty() ? 0 : reinterpret_cast<std::intptr_t>(tensor.raw()));
}

OpKey& OpKey::add(std::int64_t number) {
  if (count_ == kMaxWords) throw std::logic_error("the key of a sequence of ops is too long");
  words_[count_++] = static_cast<std::uint64_t>(number);
  return *this;
}

OpGraph::Turn OpGraph::begin(Device& device, OpKey& key) {
  if (!device.allows_graphs()) return Turn::plain;
  key.add(device.num_allocations()).add(device.workspace().position());
  const bool known = key == key_;
  if (known && recorded_) return Turn::replay;
  key_ = key;
  recorded_ = false;
  if (!known) return Turn::plain;
  if (!recording_) recording_ = device.hardware().create_recording();
  if (!recording_) return Turn::plain;
  recording_->begin();
  return Turn::record;
}

bool OpGraph::end(Device& device, std::string refusal) {
  const std::string own = recording_->end();
  if (refusal.empty()) refusal = own;
  recorded_ = refusal.empty();
  if (recorded_) {
    recording_->launch();
  } else {
    device.refuse_graphs(refusal);
  }
  return recorded_;
}

}  // namespace chaski
