#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace chaski {

// All that a sequence of ops depends on besides the contents of its tensors.
class OpKey {
 public:
  // Where the tensor lies; its shape must follow from the key's other words.
  OpKey& add(const Tensor& tensor);
  OpKey& add(std::int64_t number);
  bool operator==(const OpKey&) const = default;

 private:
  static constexpr std::size_t kMaxWords = 48;
  std::array<std::uint64_t, kMaxWords> words_{};
  std::size_t count_ = 0;
};

// A sequence of ops that comes again and again with the same operands. A GPU is handed it as one
// graph from the third time on: the first time the ops prepare themselves (workspace, a library's
// plans), the second time they are recorded. Elsewhere, and where the device does not allow graphs
// or the hardware's libraries refuse to be recorded, the ops are queued one by one.
class OpGraph {
 public:
  OpGraph() = default;
  OpGraph(OpGraph&&) noexcept = default;
  OpGraph& operator=(OpGraph&&) noexcept = default;

  // `queue()` queues ops on the device and has no other effect. Any memory that the device
  // allocated since, and other workspace in use, makes for another key.
  template <typename Queue>
  void run(Device& device, OpKey key, const Queue& queue) {
    switch (begin(device, key)) {
      case Turn::plain:
        return queue();
      case Turn::replay:
        return recording_->launch();
      case Turn::record:
        break;
    }
    std::string refusal;
    try {
      queue();
    } catch (const std::exception& error) {
      refusal = error.what();  // not of recording's making if it comes again
    }
    if (!end(device, refusal)) queue();
  }

 private:
  enum class Turn { plain, record, replay };
  Turn begin(Device& device, OpKey& key);
  // Launches what was recorded; false where it was refused, by the ops or by the recording.
  bool end(Device& device, std::string refusal);

  std::unique_ptr<OpRecording> recording_;
  OpKey key_;
  bool recorded_ = false;
};

}  // namespace chaski
