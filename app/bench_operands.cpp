#include "app/bench_operands.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/elementwise.h"

namespace chaski {
namespace {

constexpr std::int64_t kLine = Device::kAlignment / sizeof(float);
// Sets beyond this number would not make the operands any colder.
constexpr std::int64_t kMaxSets = 4096;

std::int64_t padded(const Shape& shape) {
  return (shape.num_elements() + kLine - 1) / kLine * kLine;
}

std::int64_t elements_of(const std::vector<Shape>& shapes) {
  std::int64_t elements = 0;
  for (const Shape& shape : shapes) elements += padded(shape);
  return elements;
}

std::int64_t elements_for(const std::vector<std::vector<Shape>>& sets) {
  std::int64_t elements = BenchOperands::kMinBytes / static_cast<std::int64_t>(sizeof(float));
  for (const auto& shapes : sets) elements = std::max(elements, elements_of(shapes));
  return elements;
}

}  // namespace

BenchOperands::BenchOperands(Device& device, const std::vector<std::vector<Shape>>& sets)
    : memory_(device.allocate(DType::f32, {elements_for(sets)}, MemoryCategory::activations)) {
  refill();
}

void BenchOperands::refill() {
  const Tensor& all = memory_.tensor();
  constexpr std::int64_t kPattern = std::int64_t{1} << 18;
  const std::int64_t pattern = std::min(kPattern, all.num_elements());
  fill_normal(all.rows(0, pattern), 0.0f, 1.0f, 1, 1);
  float* x = all.f32();
  for (std::int64_t i = 0; i < pattern; ++i) x[i] = std::abs(x[i]);
  for (std::int64_t done = pattern; done < all.num_elements(); done += pattern) {
    const std::int64_t count = std::min(pattern, all.num_elements() - done);
    std::memcpy(x + done, x, static_cast<std::size_t>(count) * sizeof(float));
  }
}

BenchOperands::Sets BenchOperands::carve(const std::vector<Shape>& shapes) const {
  const Tensor& all = memory_.tensor();
  const std::int64_t size = elements_of(shapes);
  const std::int64_t count = std::clamp<std::int64_t>(all.num_elements() / size, 1, kMaxSets);
  Sets result;
  float* next = all.f32();
  for (std::int64_t i = 0; i < count; ++i) {
    std::vector<Tensor>& set = result.sets_.emplace_back();
    for (const Shape& shape : shapes) {
      set.emplace_back(all.device(), DType::f32, shape, next);
      next += padded(shape);
    }
  }
  return result;
}

const std::vector<Tensor>& BenchOperands::Sets::next() {
  turn_ = (turn_ + 1) % sets_.size();
  return sets_[turn_];
}

}  // namespace chaski
