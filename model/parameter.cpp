#include "model/parameter.h"

#include <fmt/core.h>
#include <stdexcept>

#include "kernels/device/rounding.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

Tensor adjacent(const std::vector<Parameter>& parameters, std::int64_t first, std::int64_t count,
                Tensor Parameter::*member) {
  const Tensor& begin = parameters[first].*member;
  std::int64_t rows = 0;
  for (std::int64_t i = first; i < first + count; ++i) {
    const Tensor& tensor = parameters[i].*member;
    if (tensor.empty()) return {};
    const std::int64_t bytes = rows * begin.shape().back() * size_of(begin.dtype());
    if (tensor.raw() != static_cast<char*>(begin.raw()) + bytes) {
      throw std::logic_error("parameters are not adjacent: " + parameters[i].name);
    }
    rows += tensor.dim(0);
  }
  return Tensor(begin.device(), begin.dtype(), {rows, begin.shape().back()}, begin.raw());
}

}  // namespace

const char* name_of(ParameterKind kind) {
  switch (kind) {
    case ParameterKind::embedding:
      return "embedding";
    case ParameterKind::attention:
      return "attention";
    case ParameterKind::ffn:
      return "ffn";
    case ParameterKind::norm:
      return "norm";
    case ParameterKind::head:
      return "head";
  }
  return "unknown";
}

// FNV-1a.
std::uint64_t random_stream_of(const std::string& parameter_name) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const char c : parameter_name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  }
  return hash;
}

void ParameterSet::add(std::string name, ParameterKind kind, std::int64_t layer, Shape shape,
                       const std::string& group) {
  Parameter parameter;
  parameter.name = std::move(name);
  parameter.kind = kind;
  parameter.layer = layer;
  parameter.shape = shape;
  parameters_.push_back(std::move(parameter));
  groups_.push_back(group);
}

std::int64_t ParameterSet::group_alignment(const TensorTypes& types) {
  return Device::kAlignment / size_of(types.compute);  // the smallest of them
}

std::vector<std::int64_t> ParameterSet::place(
    const std::function<bool(const Parameter&)>& wanted) const {
  const std::int64_t alignment = group_alignment(types_);
  std::vector<std::int64_t> offsets(parameters_.size() + 1, 0);
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const bool continues_group = i > 0 && !groups_[i].empty() && groups_[i] == groups_[i - 1];
    if (!continues_group) offset = round_up(offset, alignment);
    offsets[i] = offset;
    if (wanted(parameters_[i])) offset += parameters_[i].shape.num_elements();
  }
  offsets.back() = round_up(offset, alignment);
  return offsets;
}

void ParameterSet::allocate() {
  const auto offsets = place([](const Parameter&) { return true; });
  values_ = device_.allocate(types_.weights, {offsets.back()}, MemoryCategory::weights,
                             types_.has_master_weights() ? "master weights" : nullptr);
  if (types_.has_master_weights()) {
    compute_ = device_.allocate(types_.compute, {offsets.back()}, MemoryCategory::weights,
                                "rounded weights");
  }
  const Buffer& compute = types_.has_master_weights() ? compute_ : values_;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i].value = part_of(values_, offsets[i], parameters_[i].shape);
    parameters_[i].compute = part_of(compute, offsets[i], parameters_[i].shape);
  }
}

void ParameterSet::allocate_gradients(const std::function<bool(const Parameter&)>& trainable) {
  const auto offsets = place(trainable);
  for (Parameter& parameter : parameters_) parameter.gradient = Tensor();
  gradients_.release();
  if (offsets.back() == 0) return;
  gradients_ = device_.allocate(types_.gradients, {offsets.back()}, MemoryCategory::gradients);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!trainable(parameters_[i])) continue;
    parameters_[i].gradient = part_of(gradients_, offsets[i], parameters_[i].shape);
  }
}

Tensor ParameterSet::part_of(const Buffer& buffer, std::int64_t offset, const Shape& shape) const {
  return buffer.tensor().rows(offset, shape.num_elements()).view(shape);
}

void ParameterSet::refresh_compute() {
  if (types_.has_master_weights()) cast(values_.tensor(), compute_.tensor());
  values_changed();
}

void ParameterSet::zero_gradients() {
  if (!gradients_.empty()) fill(gradients_.tensor(), 0.0f);
}

std::int64_t ParameterSet::index_of(const std::string& name) const {
  for (std::int64_t i = 0; i < size(); ++i) {
    if (parameters_[i].name == name) return i;
  }
  throw std::out_of_range(fmt::format("no parameter is called {}", name));
}

std::int64_t ParameterSet::num_elements() const {
  std::int64_t total = 0;
  for (const Parameter& parameter : parameters_) total += parameter.shape.num_elements();
  return total;
}

Tensor ParameterSet::fused_compute(std::int64_t first, std::int64_t count) const {
  return adjacent(parameters_, first, count, &Parameter::compute);
}

Tensor ParameterSet::fused_gradients(std::int64_t first, std::int64_t count) const {
  return adjacent(parameters_, first, count, &Parameter::gradient);
}

}  // namespace chaski
