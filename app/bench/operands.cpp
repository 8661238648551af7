#include "app/bench/operands.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/elementwise/elementwise.h"
#include "kernels/measuring/timer.h"

namespace chaski {
namespace {

// Sets beyond this number would not make the operands any colder.
constexpr std::int64_t kMaxSets = 4096;
// Several times the last-level cache of a large server's core complex.
constexpr std::int64_t kMinBytesOnCpu = std::int64_t{256} << 20;
constexpr std::int64_t kTimesCacheOfGpu = 16;

std::int64_t bytes_of(const BenchOperandList& operands) {
  std::int64_t bytes = 0;
  for (const BenchOperand& operand : operands)
    bytes += charged_bytes(operand.shape.num_elements() * size_of(operand.type));
  return bytes;
}

std::int64_t elements_for(Device& device, DType type, const std::vector<BenchOperandList>& sets) {
  const std::int64_t cache = device_properties(device).cache_bytes;
  std::int64_t bytes = cache > 0 ? kTimesCacheOfGpu * cache : kMinBytesOnCpu;
  for (const BenchOperandList& operands : sets) bytes = std::max(bytes, bytes_of(operands));
  return charged_bytes(bytes) / size_of(type);
}

std::vector<float> positive_numbers() {
  constexpr std::size_t kCount = std::size_t{1} << 18;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(kCount);
  for (float& number : numbers) number = std::abs(normal(generator));
  return numbers;
}

}  // namespace

Buffer random_ids(Device& device, Shape shape, std::int64_t vocab_size, unsigned seed) {
  Buffer ids = device.allocate(DType::i32, shape, MemoryCategory::activations);
  std::mt19937 generator(seed);
  std::vector<std::int32_t> values(static_cast<std::size_t>(shape.num_elements()));
  for (std::int32_t& id : values) id = static_cast<std::int32_t>(generator() % vocab_size);
  copy_from_host(values.data(), ids.tensor());
  return ids;
}

BenchOperands::BenchOperands(Device& device, DType type, const std::vector<BenchOperandList>& sets)
    : memory_(
          device.allocate(type, {elements_for(device, type, sets)}, MemoryCategory::activations)),
      pattern_(positive_numbers()) {
  refill();
}

Tensor BenchOperands::memory() const {
  const Tensor& all = memory_.tensor();
  return {all.device(), DType::f32, {all.num_bytes() / size_of(DType::f32)}, all.raw()};
}

void BenchOperands::refill() {
  const Tensor& all = memory_.tensor();
  const std::int64_t pattern =
      std::min(static_cast<std::int64_t>(pattern_.size()), all.num_elements());
  {
    Workspace::Frame frame(all.device());
    const Tensor numbers = frame.f32({pattern});
    copy_from_host(pattern_.data(), numbers);
    cast(numbers, all.rows(0, pattern));
  }
  for (std::int64_t done = pattern; done < all.num_elements(); done += pattern) {
    const std::int64_t count = std::min(pattern, all.num_elements() - done);
    copy(all.rows(0, count), all.rows(done, count));
  }
}

BenchOperands::Sets BenchOperands::carve(const BenchOperandList& operands) const {
  const Tensor& all = memory_.tensor();
  const std::int64_t count =
      std::clamp<std::int64_t>(all.num_bytes() / bytes_of(operands), 1, kMaxSets);
  Sets result;
  auto* next = static_cast<char*>(all.raw());
  for (std::int64_t i = 0; i < count; ++i) {
    std::vector<Tensor>& set = result.sets_.emplace_back();
    for (const BenchOperand& operand : operands) {
      const Tensor tensor(all.device(), operand.type, operand.shape, next);
      set.push_back(tensor);
      next += charged_bytes(tensor.num_bytes());
    }
  }
  return result;
}

const std::vector<Tensor>& BenchOperands::Sets::next() {
  turn_ = (turn_ + 1) % sets_.size();
  return sets_[turn_];
}

}  // namespace chaski
