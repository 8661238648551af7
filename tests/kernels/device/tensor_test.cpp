#include "kernels/device/tensor.h"

#include <gtest/gtest.h>
#include <stdexcept>

#include "kernels/device/device.h"

namespace chaski {
namespace {

TEST(ShapeTest, CountsElementsAndRows) {
  EXPECT_EQ(Shape().num_elements(), 1);
  EXPECT_EQ(Shape().rank(), 0);
  const Shape shape = {2, 3, 5};
  EXPECT_EQ(shape.num_elements(), 30);
  EXPECT_EQ(shape.num_rows(), 6);
  EXPECT_EQ(shape.back(), 5);
  EXPECT_EQ(shape.to_string(), "[2, 3, 5]");
  EXPECT_EQ(shape.with_first(7).to_string(), "[7, 3, 5]");
  EXPECT_EQ(Shape({0, 5}).num_elements(), 0);
  EXPECT_EQ(Shape({5, 0}).num_rows(), 0);
  EXPECT_TRUE(Shape({2, 3}) == Shape({2, 3}));
  EXPECT_FALSE(Shape({2, 3}) == Shape({3, 2}));
  EXPECT_FALSE(Shape({2, 3}) == Shape({2, 3, 1}));
}

TEST(ShapeTest, RefusesTooManyOrNegativeDimensions) {
  EXPECT_THROW(Shape({1, 2, 3, 4, 5}), std::invalid_argument);
  EXPECT_THROW(Shape({1, -2}), std::invalid_argument);
}

TEST(TensorTest, ViewsAndRowsShareMemory) {
  const auto device = Device::create_cpu(1);
  const Buffer buffer = device->allocate(DType::f32, {4, 6}, MemoryCategory::activations);
  const Tensor& tensor = buffer.tensor();
  tensor.f32()[13] = 5.0f;
  EXPECT_EQ(tensor.view({2, 12}).f32()[13], 5.0f);
  const Tensor rows = tensor.rows(2, 2);
  EXPECT_EQ(rows.shape().to_string(), "[2, 6]");
  EXPECT_EQ(rows.f32()[1], 5.0f);
  EXPECT_EQ(rows.num_bytes(), 48);
  EXPECT_EQ(tensor.rows(4, 0).num_elements(), 0);
  EXPECT_THROW(tensor.view({5, 5}), std::invalid_argument);
  EXPECT_THROW(tensor.rows(3, 2), std::invalid_argument);
  EXPECT_THROW(tensor.rows(-1, 2), std::invalid_argument);
}

TEST(TensorTest, RefusesAnotherType) {
  const auto device = Device::create_cpu(1);
  const Buffer buffer = device->allocate(DType::i32, {3}, MemoryCategory::activations);
  EXPECT_NO_THROW(buffer.tensor().i32());
  EXPECT_THROW(buffer.tensor().f32(), std::logic_error);
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(Tensor().num_elements(), 0);
  EXPECT_EQ(Tensor().f32(), nullptr);
}

}  // namespace
}  // namespace chaski
