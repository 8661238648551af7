#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace chaski {

class Device;

enum class DType : std::uint8_t { f32, bf16, i32, u8, f64, i64 };
inline constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::i32,
                                    DType::u8,  DType::f64,  DType::i64};

// Bytes of one element.
std::int64_t size_of(DType dtype);
const char* name_of(DType dtype);
// The one that is called so; none: there is no such.
std::optional<DType> dtype_named(std::string_view name);

// Up to four dimensions, outermost first. A default Shape has rank 0 and one element.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  // Throws std::invalid_argument for more than kMaxRank dimensions or a negative one.
  Shape(std::initializer_list<std::int64_t> dims);

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[i]; }
  std::int64_t back() const { return rank_ == 0 ? 1 : dims_[rank_ - 1]; }
  std::int64_t num_elements() const;
  // The product of all dimensions but the last: the rows of the tensor seen as a matrix.
  std::int64_t num_rows() const { return back() == 0 ? 0 : num_elements() / back(); }
  // The same with another first dimension.
  Shape with_first(std::int64_t dim) const;
  bool operator==(const Shape& other) const;
  std::string to_string() const;  // "[2048, 512]"

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// A typed, shaped, contiguous, row-major view of memory that somebody else owns (a Buffer, a
// Workspace frame). Copying a Tensor copies the view. A default Tensor is empty: data is null.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Device& device, DType dtype, Shape shape, void* data)
      : device_(&device), data_(data), shape_(shape), dtype_(dtype) {}

  bool empty() const { return data_ == nullptr; }
  explicit operator bool() const { return data_ != nullptr; }
  Device& device() const { return *device_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(int i) const { return shape_[i]; }
  std::int64_t num_elements() const { return empty() ? 0 : shape_.num_elements(); }
  std::int64_t num_bytes() const { return num_elements() * size_of(dtype_); }

  // The elements as T (float, std::int32_t, std::uint16_t for bf16, std::uint8_t, double,
  // std::int64_t).
  // Throws std::logic_error when T is not the tensor's dtype.
  template <typename T>
  T* as() const;
  float* f32() const { return as<float>(); }
  std::int32_t* i32() const { return as<std::int32_t>(); }
  std::int64_t* i64() const { return as<std::int64_t>(); }
  void* raw() const { return data_; }

  // The same elements under another shape of as many elements.
  Tensor view(Shape shape) const;
  // Rows [begin, begin + count) along the first dimension.
  Tensor rows(std::int64_t begin, std::int64_t count) const;

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
};

}  // namespace chaski
