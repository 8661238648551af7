#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/device/bf16.h"
#include "kernels/device/cpu_isa.h"
#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski::test {

// Where an op's suite runs, and the type of its activations there.
struct TestBackend {
  Backend backend;
  DType activations;
};

inline std::unique_ptr<Device> create_device(Backend backend, int num_threads) {
  return backend == Backend::cpu ? Device::create_cpu(num_threads) : Device::create_cuda(0);
}

// What this machine can run.
inline std::vector<TestBackend> backends_present() {
  std::vector<TestBackend> backends = {{Backend::cpu, DType::f32}};
  if (num_cuda_devices() > 0) {
    backends.push_back({Backend::cuda, DType::f32});
    backends.push_back({Backend::cuda, DType::bf16});
  }
  return backends;
}

inline std::string backend_name(const ::testing::TestParamInfo<TestBackend>& info) {
  return std::string(info.param.backend == Backend::cpu ? "cpu_" : "cuda_") +
         name_of(info.param.activations);
}

// Runs a suite derived from OpTest on every backend.
#define CHASKI_ON_ALL_DEVICES(suite)                                               \
  INSTANTIATE_TEST_SUITE_P(, suite, ::testing::ValuesIn(test::backends_present()), \
                           test::backend_name)

using Values = std::vector<float>;
using Reference = std::vector<double>;

// Uniform numbers in [-limit, limit].
inline Values random_values(std::int64_t count, unsigned seed, float limit = 1.0f) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-limit, limit);
  Values values(static_cast<std::size_t>(count));
  for (float& value : values) value = uniform(generator);
  return values;
}

inline Reference widen(const Values& values) {
  return {values.begin(), values.end()};
}

// Each element to `tolerance` times the largest magnitude expected.
inline void expect_close(const Values& actual, const Reference& expected, double tolerance,
                         const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = 0.0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], tolerance * largest + 1e-30)
        << what << "[" << i << "] of " << expected.size();
}

inline bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// df/dx by central differences of a function in double.
inline Reference central_differences(const std::function<double(const Reference&)>& function,
                                     Reference x, double step = 1e-5) {
  Reference gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    x[i] = value + step;
    const double above = function(x);
    x[i] = value - step;
    const double below = function(x);
    x[i] = value;
    gradient[i] = (above - below) / (2.0 * step);
  }
  return gradient;
}

class OpTest : public ::testing::TestWithParam<TestBackend> {
 protected:
  void SetUp() override {
    try {
      cpu_isa();
    } catch (const std::invalid_argument& error) {
      GTEST_SKIP() << error.what();
    }
    use_threads(2);
  }

  // A new device: tensors made before must not be used any more.
  void use_threads(int num_threads) {
    buffers_.clear();
    device_ = create_device(GetParam().backend, num_threads);
  }
  Device& device() { return *device_; }
  bool on_cpu() const { return GetParam().backend == Backend::cpu; }
  bool in_bf16() const { return GetParam().activations == DType::bf16; }
  // What an op's result may differ by: `exact` on the CPU, 1e-5 in fp32 on a GPU.
  double tolerance(double exact) const {
    if (on_cpu()) return exact;
    return in_bf16() ? 1e-2 : std::max(exact, 1e-5);
  }

  // Tensors that live until the end of the test or the next use_threads().
  Tensor zeros(Shape shape, DType dtype = DType::f32) {
    buffers_.push_back(device_->allocate(dtype, shape, MemoryCategory::activations));
    return buffers_.back().tensor();
  }
  // Of what is fp32 everywhere: statistics, losses, gradients of weights, master weights, moments.
  Tensor tensor(Shape shape, const Values& values) {
    const Tensor result = zeros(shape);
    EXPECT_EQ(result.num_elements(), static_cast<std::int64_t>(values.size()));
    copy_from_host(values.data(), result);
    return result;
  }
  // Of what the backend computes with: activations, their gradients, weights that ops read.
  Tensor activations(Shape shape, const Values& values) {
    if (!in_bf16()) return tensor(shape, values);
    const Tensor result = zeros(shape, DType::bf16);
    EXPECT_EQ(result.num_elements(), static_cast<std::int64_t>(values.size()));
    std::vector<std::uint16_t> rounded(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(),
                   [](float x) { return bf16_from_float(x); });
    copy_from_host(rounded.data(), result);
    return result;
  }
  // For results: not a number wherever the op does not write.
  Tensor poisoned_activations(Shape shape) {
    return activations(shape, Values(static_cast<std::size_t>(shape.num_elements()),
                                     std::numeric_limits<float>::quiet_NaN()));
  }
  // One element behind an aligned address, where no vector can begin.
  Tensor shifted_activations(Shape shape, const Values& values) {
    Values padded = {std::numeric_limits<float>::quiet_NaN()};
    padded.insert(padded.end(), values.begin(), values.end());
    const auto count = static_cast<std::int64_t>(values.size());
    return activations({count + 1}, padded).rows(1, count).view(shape);
  }
  // Gradients of weights may be fp32 everywhere, and bf16 where the activations are.
  Tensor weight_gradient(Shape shape, const Values& values, DType type) {
    return type == DType::bf16 ? activations(shape, values) : tensor(shape, values);
  }
  std::vector<DType> weight_gradient_types() const {
    if (in_bf16()) return {DType::f32, DType::bf16};
    return {DType::f32};
  }
  Tensor integers(const std::vector<std::int32_t>& values) {
    const Tensor result = zeros({static_cast<std::int64_t>(values.size())}, DType::i32);
    copy_from_host(values.data(), result);
    return result;
  }
  // The elements, of f32 or bf16.
  Values values(const Tensor& tensor) {
    Values result(static_cast<std::size_t>(tensor.num_elements()));
    if (tensor.dtype() != DType::bf16) {
      copy_to_host(tensor, result.data());
      return result;
    }
    std::vector<std::uint16_t> halves(result.size());
    copy_to_host(tensor, halves.data());
    std::transform(halves.begin(), halves.end(), result.begin(),
                   [](std::uint16_t x) { return float_from_bf16(x); });
    return result;
  }
  // What `activations` holds of these values.
  Values as_held(const Values& values) const {
    if (!in_bf16()) return values;
    Values result(values.size());
    std::transform(values.begin(), values.end(), result.begin(),
                   [](float x) { return float_from_bf16(bf16_from_float(x)); });
    return result;
  }

  // `run` makes its tensors on the current device and returns what it computed: the same bits for
  // 1, 2 and 3 threads.
  void expect_same_for_any_threads(const std::function<Values()>& run) {
    use_threads(1);
    const Values expected = run();
    for (const int threads : {2, 3}) {
      if (threads > 2 && !on_cpu()) break;  // on a GPU they are not what computes
      use_threads(threads);
      EXPECT_TRUE(same_bits(run(), expected)) << threads << " threads";
    }
  }

 private:
  std::unique_ptr<Device> device_;
  std::vector<Buffer> buffers_;
};

}  // namespace chaski::test
