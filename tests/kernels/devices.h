#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/device.h"

namespace chaski::test {

inline std::unique_ptr<Device> create_device(Backend backend, int num_threads) {
  return backend == Backend::cpu ? Device::create_cpu(num_threads) : Device::create_cuda(0);
}

// The backends that this machine can run.
inline std::vector<Backend> backends_present() {
  std::vector<Backend> backends = {Backend::cpu};
  try {
    Device::create_cuda(0);
    backends.push_back(Backend::cuda);
  } catch (const std::invalid_argument&) {
  }
  return backends;
}

inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return info.param == Backend::cpu ? "cpu" : "cuda";
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

class OpTest : public ::testing::TestWithParam<Backend> {
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
    device_ = create_device(GetParam(), num_threads);
  }
  Device& device() { return *device_; }

  // Tensors that live until the end of the test or the next use_threads().
  Tensor zeros(Shape shape, DType dtype = DType::f32) {
    buffers_.push_back(device_->allocate(dtype, shape, MemoryCategory::activations));
    return buffers_.back().tensor();
  }
  Tensor tensor(Shape shape, const Values& values) {
    const Tensor result = zeros(shape);
    EXPECT_EQ(result.num_elements(), static_cast<std::int64_t>(values.size()));
    std::memcpy(result.f32(), values.data(), values.size() * sizeof(float));
    return result;
  }
  Tensor integers(const std::vector<std::int32_t>& values) {
    const Tensor result = zeros({static_cast<std::int64_t>(values.size())}, DType::i32);
    std::memcpy(result.i32(), values.data(), values.size() * sizeof(std::int32_t));
    return result;
  }
  Values values(const Tensor& tensor) {
    device_->synchronize();
    return Values(tensor.f32(), tensor.f32() + tensor.num_elements());
  }

  // `run` makes its tensors on the current device and returns what it computed: the same bits for
  // 1, 2 and 3 threads.
  void expect_same_for_any_threads(const std::function<Values()>& run) {
    use_threads(1);
    const Values expected = run();
    for (const int threads : {2, 3}) {
      use_threads(threads);
      EXPECT_TRUE(same_bits(run(), expected)) << threads << " threads";
    }
  }

 private:
  std::unique_ptr<Device> device_;
  std::vector<Buffer> buffers_;
};

}  // namespace chaski::test
