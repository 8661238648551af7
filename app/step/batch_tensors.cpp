#include "app/step/batch_tensors.h"

namespace chaski {

BatchTensors::Upload::Upload(Device& device, std::int64_t elements)
    : buffer(device.allocate(DType::i32, {elements}, MemoryCategory::activations, kTokenBatches)),
      writer(create_host_writer(device)) {}

Tensor BatchTensors::Upload::write(const std::vector<std::int32_t>& values, const Batch& batch) {
  const Tensor target = buffer.tensor().rows(0, static_cast<std::int64_t>(values.size()));
  writer->write(values.data(), target);
  return target.view({batch.rows, batch.sequence_length});
}

BatchTensors::BatchTensors(Device& device, std::int64_t rows, std::int64_t sequence_length)
    : tokens_(device, rows * sequence_length),
      targets_(device, rows * sequence_length),
      positions_(device, rows * sequence_length) {
  const Shape shape{rows, sequence_length};
  micro_batch_ = {tokens_.buffer.tensor().view(shape), targets_.buffer.tensor().view(shape), {}};
}

MicroBatch BatchTensors::upload(const Batch& batch, bool with_positions) {
  micro_batch_.tokens = tokens_.write(batch.tokens, batch);
  micro_batch_.targets = targets_.write(batch.targets, batch);
  micro_batch_.positions = with_positions ? positions_.write(batch.positions, batch) : Tensor();
  return micro_batch_;
}

}  // namespace chaski
