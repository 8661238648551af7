#include "app/batch_tensors.h"

#include "kernels/elementwise.h"

namespace chaski {
namespace {

Buffer allocate(Device& device, std::int64_t elements) {
  return device.allocate(DType::i32, {elements}, MemoryCategory::activations);
}

Tensor fill_from(const Buffer& buffer, const std::vector<std::int32_t>& values,
                 const Batch& batch) {
  const auto count = static_cast<std::int64_t>(values.size());
  const Tensor target = buffer.tensor().rows(0, count);
  copy_from_host(values.data(), target);
  return target.view({batch.rows, batch.sequence_length});
}

}  // namespace

BatchTensors::BatchTensors(Device& device, std::int64_t rows, std::int64_t sequence_length)
    : tokens_(allocate(device, rows * sequence_length)),
      targets_(allocate(device, rows * sequence_length)),
      positions_(allocate(device, rows * sequence_length)) {}

MicroBatch BatchTensors::upload(const Batch& batch, bool with_positions) {
  micro_batch_.tokens = fill_from(tokens_, batch.tokens, batch);
  micro_batch_.targets = fill_from(targets_, batch.targets, batch);
  micro_batch_.positions =
      with_positions ? fill_from(positions_, batch.positions, batch) : Tensor();
  return micro_batch_;
}

}  // namespace chaski
