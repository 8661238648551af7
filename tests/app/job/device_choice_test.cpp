#include "app/job/device_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdexcept>

#include "kernels/device/device_backend.h"

namespace chaski {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

DeviceConfig config_of(BackendChoice backend, PrecisionChoice precision) {
  DeviceConfig config;
  config.backend = backend;
  config.precision = precision;
  return config;
}

std::string refusal(const DeviceConfig& config, int num_gpus, int processes,
                    const DeviceWords& words = {}) {
  try {
    choose_device(config, num_gpus, 0, processes, words);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(DeviceChoice, AutomaticTakesAGpuForEachProcessOrNone) {
  const DeviceConfig automatic;
  EXPECT_EQ(choose_device(automatic, 0, 0, 1).backend, Backend::cpu);
  EXPECT_EQ(choose_device(automatic, 0, 0, 1).precision, Precision::fp32);
  const DeviceChoice gpu = choose_device(automatic, 4, 3, 4);
  EXPECT_EQ(gpu.backend, Backend::cuda);
  EXPECT_EQ(gpu.ordinal, 3);
  EXPECT_EQ(gpu.precision, Precision::bf16);
  EXPECT_FALSE(gpu.tf32);
  EXPECT_EQ(gpu.without_gpu, "");
  const DeviceChoice cpu = choose_device(automatic, 4, 4, 5);
  EXPECT_EQ(cpu.backend, Backend::cpu);
  EXPECT_EQ(cpu.without_gpu, "this host has 4 GPUs for 5 processes");
  const DeviceConfig as_told = config_of(BackendChoice::cpu, PrecisionChoice::automatic);
  EXPECT_EQ(choose_device(as_told, 4, 4, 5).without_gpu, "");
}

TEST(DeviceChoice, PrecisionIsWhatWasAskedFor) {
  const auto on_gpu = [](PrecisionChoice precision) {
    return choose_device(config_of(BackendChoice::automatic, precision), 1, 0, 1);
  };
  EXPECT_EQ(on_gpu(PrecisionChoice::fp32).precision, Precision::fp32);
  EXPECT_EQ(on_gpu(PrecisionChoice::bf16_pure).precision, Precision::bf16_pure);
  EXPECT_EQ(on_gpu(PrecisionChoice::tf32).precision, Precision::fp32);
  EXPECT_TRUE(on_gpu(PrecisionChoice::tf32).tf32);
}

TEST(DeviceChoice, ACpuComputesInFp32Only) {
  EXPECT_THAT(refusal(config_of(BackendChoice::cpu, PrecisionChoice::bf16), 1, 1),
              HasSubstr("device.precision is \"bf16\" but the CPU computes in fp32"));
  EXPECT_THAT(refusal(config_of(BackendChoice::automatic, PrecisionChoice::tf32), 0, 1),
              HasSubstr("device.precision is \"tf32\""));
}

TEST(DeviceChoice, SaysWhyThereIsNoGpu) {
  const DeviceConfig cuda = config_of(BackendChoice::cuda, PrecisionChoice::automatic);
  if (!is_built_with_cuda()) {
    EXPECT_THAT(refusal(cuda, 0, 1), HasSubstr("built without CUDA"));
    return;
  }
  EXPECT_THAT(refusal(cuda, 2, 3), HasSubstr("2 GPUs for 3 processes"));
  EXPECT_THAT(refusal(cuda, 1, 2), HasSubstr("1 GPU for 2 processes"));
  if (num_cuda_devices() > 0) return;
  EXPECT_THAT(refusal(cuda, 0, 1), StartsWith("device.backend is \"cuda\", but "));
  EXPECT_THAT(refusal(cuda, 0, 1), HasSubstr("hint:"));
}

TEST(DeviceChoice, NamesTheOptionWhereOneWasGiven) {
  const DeviceWords words{.backend = "--device", .precision = "--precision"};
  const DeviceConfig cuda = config_of(BackendChoice::cuda, PrecisionChoice::automatic);
  if (is_built_with_cuda()) {
    EXPECT_THAT(refusal(cuda, 1, 2, words), StartsWith("--device is \"cuda\", but this host has"));
  }
  if (num_cuda_devices() == 0) {
    EXPECT_THAT(refusal(cuda, 0, 1, words), StartsWith("--device is \"cuda\", but "));
    EXPECT_THAT(refusal(cuda, 0, 1, words), Not(HasSubstr("device.backend")));
  }
  EXPECT_THAT(refusal(config_of(BackendChoice::cpu, PrecisionChoice::bf16), 1, 1, words),
              StartsWith("--precision is \"bf16\" but the CPU computes in fp32"));
}

TEST(DeviceChoice, WhatCommandsAreGivenAreOptions) {
  if (num_cuda_devices() > 0) return;
  const auto refusal_of = [](const std::string& device, const std::string& precision) {
    try {
      device_named(device, precision);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(refusal_of("cuda", "auto"), StartsWith("--device is \"cuda\", but "));
  EXPECT_THAT(refusal_of("cpu", "tf32"), StartsWith("--precision is \"tf32\""));
}

}  // namespace
}  // namespace chaski
