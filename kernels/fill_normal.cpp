#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/dispatch.h"
#include "kernels/elementwise.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/philox.h"

namespace chaski {
namespace {

struct NormalPair {
  double first;
  double second;
};

// Box-Muller. In double, so that the same seed gives the same floats on any processor.
NormalPair box_muller(std::uint32_t word0, std::uint32_t word1) {
  constexpr double kUnit = 1.0 / 4294967296.0;
  const double uniform = (word0 + 0.5) * kUnit;  // in (0, 1): the logarithm is finite
  const double angle = 2.0 * std::numbers::pi * (word1 * kUnit);
  const double radius = std::sqrt(-2.0 * std::log(uniform));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream) {
  const Device& device = device_of("fill_normal", out);
  CHASKI_CUDA_OP(device, fill_normal(out, mean, standard_deviation, seed, stream));
  constexpr std::int64_t kGroup = 4;  // elements from one counter
  const std::int64_t count = out.num_elements();
  const std::int64_t num_groups = (count + kGroup - 1) / kGroup;
  const int threads = threads_for(device, count);
  float* values = out.f32();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t group = 0; group < num_groups; ++group) {
    const auto index = static_cast<std::uint64_t>(group);
    const PhiloxWords words = philox4x32(philox_counter(index, stream), seed);
    const NormalPair a = box_muller(words.at[0], words.at[1]);
    const NormalPair b = box_muller(words.at[2], words.at[3]);
    const double normals[kGroup] = {a.first, a.second, b.first, b.second};
    const std::int64_t begin = group * kGroup;
    const std::int64_t end = std::min(begin + kGroup, count);
    for (std::int64_t i = begin; i < end; ++i)
      values[i] = static_cast<float>(mean + standard_deviation * normals[i - begin]);
  }
}

}  // namespace chaski
