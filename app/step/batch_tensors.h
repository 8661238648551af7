#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/sequence_dataset.h"
#include "kernels/device/device.h"
#include "kernels/device/host_writer.h"
#include "model/stage.h"

namespace chaski {

// What their memory is for, on the device.
inline constexpr const char* kTokenBatches = "token batches";

// Device memory for the tokens of a micro-batch.
class BatchTensors {
 public:
  // For at most `rows` rows of `sequence_length` tokens.
  BatchTensors(Device& device, std::int64_t rows, std::int64_t sequence_length);

  // Copies a batch; without `with_positions` the tokens attend to their whole row. The result is
  // valid until the next call.
  MicroBatch upload(const Batch& batch, bool with_positions);
  // What the last upload() returned; all rows before the first.
  const MicroBatch& micro_batch() const { return micro_batch_; }

 private:
  // Device memory with the way to it.
  struct Upload {
    Buffer buffer;
    std::unique_ptr<HostWriter> writer;

    Upload(Device& device, std::int64_t elements);
    Tensor write(const std::vector<std::int32_t>& values, const Batch& batch);
  };

  Upload tokens_;
  Upload targets_;
  Upload positions_;
  MicroBatch micro_batch_;
};

}  // namespace chaski
