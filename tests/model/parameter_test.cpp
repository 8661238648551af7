#include "model/parameter.h"

#include <cstdint>
#include <gtest/gtest.h>

namespace chaski {
namespace {

class ParametersInPrecision : public testing::TestWithParam<Precision> {};

// What ops read by rows begins on a cache line, whatever its type; within a group nothing is left
// out.
TEST_P(ParametersInPrecision, GroupsBeginOnCacheLines) {
  const auto device = Device::create_cpu(1);
  ParameterSet parameters(*device, types_of(GetParam()));
  parameters.add("odd", ParameterKind::norm, 0, {3});
  parameters.add("a", ParameterKind::ffn, 0, {3, 5}, "group");
  parameters.add("b", ParameterKind::ffn, 0, {7, 5}, "group");
  parameters.add("last", ParameterKind::head, -1, {33});
  parameters.allocate();
  parameters.allocate_gradients([](const Parameter&) { return true; });
  for (const Parameter& parameter : parameters) {
    if (parameter.name == "b") continue;
    for (const Tensor& tensor : {parameter.value, parameter.compute, parameter.gradient}) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.raw()) % 64, 0u) << parameter.name;
    }
  }
  EXPECT_EQ(parameters.fused_compute(1, 2).dim(0), 10);
}

INSTANTIATE_TEST_SUITE_P(Precisions, ParametersInPrecision,
                         testing::Values(Precision::fp32, Precision::bf16, Precision::bf16_pure));

// In 64 bytes are 16 elements of fp32.
TEST(ParameterSet, PlacesFp32AtMultiplesOfSixteenElements) {
  const auto device = Device::create_cpu(1);
  ParameterSet parameters(*device);
  parameters.add("a", ParameterKind::norm, 0, {17});
  parameters.add("b", ParameterKind::norm, 0, {1});
  parameters.allocate();
  EXPECT_EQ(parameters.at("b").value.f32() - parameters.at("a").value.f32(), 32);
  parameters.allocate_gradients([](const Parameter&) { return true; });
  EXPECT_EQ(parameters.all_gradients().num_elements(), 48);
}

}  // namespace
}  // namespace chaski
