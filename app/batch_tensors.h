#pragma once

#include <cstdint>

#include "data/sequence_dataset.h"
#include "kernels/device.h"
#include "model/stage.h"

namespace chaski {

// Device memory for the tokens of a micro-batch.
class BatchTensors {
 public:
  // For at most `rows` rows of `sequence_length` tokens.
  BatchTensors(Device& device, std::int64_t rows, std::int64_t sequence_length);

  // Copies a batch; without `with_positions` the tokens attend to their whole row. The result is
  // valid until the next call.
  MicroBatch upload(const Batch& batch, bool with_positions);
  // What the last upload() returned.
  const MicroBatch& micro_batch() const { return micro_batch_; }

 private:
  Buffer tokens_;
  Buffer targets_;
  Buffer positions_;
  MicroBatch micro_batch_;
};

}  // namespace chaski
