#include "kernels/device/tensor.h"

#include <fmt/format.h>
#include <iterator>
#include <stdexcept>
#include <type_traits>

namespace chaski {

namespace {

// By the numbers of DType.
struct DTypeFacts {
  const char* name;
  std::int64_t bytes;
};
constexpr DTypeFacts kFacts[] = {{"f32", 4}, {"bf16", 2}, {"i32", 4},
                                 {"u8", 1},  {"f64", 8},  {"i64", 8}};
static_assert(std::size(kFacts) == std::size(kDTypes));

const DTypeFacts& facts_of(DType dtype) {
  return kFacts[static_cast<std::size_t>(dtype)];
}

}  // namespace

std::int64_t size_of(DType dtype) {
  return facts_of(dtype).bytes;
}

const char* name_of(DType dtype) {
  return facts_of(dtype).name;
}

std::optional<DType> dtype_named(std::string_view name) {
  for (const DType dtype : kDTypes) {
    if (name == name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

Shape::Shape(std::initializer_list<std::int64_t> dims) {
  if (dims.size() > kMaxRank)
    throw std::invalid_argument(
        fmt::format("a shape has {} dimensions, at most {} are allowed", dims.size(), kMaxRank));
  for (const std::int64_t dim : dims) {
    if (dim < 0) throw std::invalid_argument(fmt::format("a shape has the dimension {}", dim));
    dims_[rank_++] = dim;
  }
}

std::int64_t Shape::num_elements() const {
  std::int64_t count = 1;
  for (int i = 0; i < rank_; ++i) count *= dims_[i];
  return count;
}

Shape Shape::with_first(std::int64_t dim) const {
  Shape result = *this;
  result.dims_[0] = dim;
  return result;
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && dims_ == other.dims_;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(dims_.begin(), dims_.begin() + rank_, ", "));
}

namespace {

template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, std::uint16_t>) return DType::bf16;
  if constexpr (std::is_same_v<T, std::int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, std::uint8_t>) return DType::u8;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, std::int64_t>) return DType::i64;
}

}  // namespace

template <typename T>
T* Tensor::as() const {
  if (dtype_ != dtype_of<T>())
    throw std::logic_error(fmt::format("a tensor of {} {} is used as {}", name_of(dtype_),
                                       shape_.to_string(), name_of(dtype_of<T>())));
  return static_cast<T*>(data_);
}

template float* Tensor::as<float>() const;
template std::uint16_t* Tensor::as<std::uint16_t>() const;
template std::int32_t* Tensor::as<std::int32_t>() const;
template std::uint8_t* Tensor::as<std::uint8_t>() const;
template double* Tensor::as<double>() const;
template std::int64_t* Tensor::as<std::int64_t>() const;

Tensor Tensor::view(Shape shape) const {
  if (shape.num_elements() != shape_.num_elements())
    throw std::invalid_argument(fmt::format("a tensor of shape {} cannot be viewed as {}",
                                            shape_.to_string(), shape.to_string()));
  Tensor result = *this;
  result.shape_ = shape;
  return result;
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t count) const {
  if (shape_.rank() == 0 || begin < 0 || count < 0 || begin > shape_[0] - count)
    throw std::invalid_argument(fmt::format("rows {} to {} are not in a tensor of shape {}", begin,
                                            begin + count, shape_.to_string()));
  const std::int64_t row_bytes = shape_[0] == 0 ? 0 : num_bytes() / shape_[0];
  Tensor result = *this;
  result.shape_ = shape_.with_first(count);
  result.data_ = static_cast<char*>(data_) + begin * row_bytes;
  return result;
}

}  // namespace chaski
