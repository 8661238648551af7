#include <cmath>
#include <numbers>

#include "kernels/device/cuda_pack.h"
#include "kernels/elementwise/elementwise_cuda.h"
#include "kernels/elementwise/philox.h"

namespace chaski::cuda {
namespace {

template <typename T>
struct Fill {
  static constexpr int kWidth = kVectorWidth<T>;
  T* out;
  float value;

  bool aligned() const { return are_aligned<kWidth>(out); }
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    Pack<T, kCount> pack;
    for (int k = 0; k < kCount; ++k) pack.at[k] = value;
    pack.store(out + i);
  }
};

template <typename T>
struct Add {
  static constexpr int kWidth = kVectorWidth<T>;
  const T* a;
  const T* b;
  T* out;

  bool aligned() const { return are_aligned<kWidth>(a, b, out); }
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    auto total = Pack<T, kCount>::load(a + i);
    const auto term = Pack<T, kCount>::load(b + i);
    for (int k = 0; k < kCount; ++k) total.at[k] += term.at[k];
    total.store(out + i);
  }
};

template <typename T>
struct Scale {
  static constexpr int kWidth = kVectorWidth<T>;
  T* x;
  float factor;

  bool aligned() const { return are_aligned<kWidth>(x); }
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    auto pack = Pack<T, kCount>::load(x + i);
    for (int k = 0; k < kCount; ++k) pack.at[k] *= factor;
    pack.store(x + i);
  }
};

template <typename From, typename To>
struct Cast {
  static constexpr int kWidth = kVectorWidth<bf16>;
  const From* from;
  To* to;

  bool aligned() const { return are_aligned<kWidth>(from) && are_aligned<kWidth>(to); }
  template <int kCount>
  __device__ void apply(std::int64_t i) const {
    const auto read = Pack<From, kCount>::load(from + i);
    Pack<To, kCount> written;
    for (int k = 0; k < kCount; ++k) written.at[k] = read.at[k];
    written.store(to + i);
  }
};

constexpr int kSumThreads = 256;

struct Itself {
  __device__ static double of(float x) { return x; }
};
struct Square {
  __device__ static double of(float x) { return static_cast<double>(x) * x; }
};
struct IsNonfinite {
  __device__ static double of(float x) { return isfinite(x) ? 0.0 : 1.0; }
};

template <typename Term, typename T, int kWidth>
__global__ void __launch_bounds__(kSumThreads)
    block_sums_kernel(const T* x, double* partial_sums, std::int64_t count) {
  const std::int64_t begin = blockIdx.x * kSumBlock;
  const std::int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
  double total = 0.0;
  std::int64_t i = begin + threadIdx.x * kWidth;
  for (; i + kWidth <= end; i += kSumThreads * kWidth) {
    const auto pack = Pack<T, kWidth>::load(x + i);
    for (int k = 0; k < kWidth; ++k) total += Term::of(pack.at[k]);
  }
  for (; i < end; ++i) total += Term::of(to_float(x[i]));
  total = block_sum<kSumThreads>(total);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kSumThreads)
    add_partial_sums_kernel(const double* partial_sums, std::int64_t num_blocks, double* total) {
  double mine = 0.0;
  for (std::int64_t block = threadIdx.x; block < num_blocks; block += kSumThreads)
    mine += partial_sums[block];
  mine = block_sum<kSumThreads>(mine);
  if (threadIdx.x == 0) *total = mine;
}

template <typename Term>
void queue_sum(const char* op, const Tensor& x, double* total) {
  Device& device = x.device();
  const std::int64_t count = x.num_elements();
  const std::int64_t num_blocks = num_partial_sums(count);
  Workspace::Frame frame(device);
  double* partial_sums = frame.tensor(DType::f64, {num_blocks}).as<double>();
  with_element_type(op, x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kWidth = kVectorWidth<T>;
    const T* values = elements<T>(x);
    const bool wide = are_aligned<kWidth>(values);
    if (num_blocks > 0) {
      launch(device, op, {grid_of(num_blocks), kSumThreads},
             wide ? block_sums_kernel<Term, T, kWidth> : block_sums_kernel<Term, T, 1>, values,
             partial_sums, count);
    }
  });
  launch(device, op, {grid_of(1), kSumThreads}, add_partial_sums_kernel, partial_sums, num_blocks,
         total);
}

template <typename Term>
double wait_for_sum(const char* op, const Tensor& x) {
  Workspace::Frame frame(x.device());
  const Tensor total = frame.tensor(DType::f64, {1});
  queue_sum<Term>(op, x, total.as<double>());
  double result = 0.0;
  copy_to_host(total, &result);
  return result;
}

// As fill_normal_cpu.cpp does it on the CPU, by the functions of CUDA.
__device__ void box_muller(std::uint32_t word0, std::uint32_t word1, double* normals) {
  constexpr double kUnit = 1.0 / 4294967296.0;
  const double uniform = (word0 + 0.5) * kUnit;  // in (0, 1): the logarithm is finite
  const double angle = 2.0 * std::numbers::pi * (word1 * kUnit);
  const double radius = sqrt(-2.0 * log(uniform));
  normals[0] = radius * cos(angle);
  normals[1] = radius * sin(angle);
}

constexpr int kNormalThreads = 256;
constexpr std::int64_t kNormalGroup = 4;  // elements from one counter

template <typename T>
__global__ void __launch_bounds__(kNormalThreads)
    fill_normal_kernel(T* out, std::int64_t count, float mean, float standard_deviation,
                       std::uint64_t seed, std::uint64_t stream) {
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * kNormalThreads + threadIdx.x;
  const std::int64_t begin = group * kNormalGroup;
  if (begin >= count) return;
  const PhiloxWords words =
      philox4x32(philox_counter(static_cast<std::uint64_t>(group), stream), seed);
  double normals[kNormalGroup];
  box_muller(words.at[0], words.at[1], normals);
  box_muller(words.at[2], words.at[3], normals + 2);
  for (std::int64_t i = 0; i < kNormalGroup && begin + i < count; ++i)
    out[begin + i] = from_float<T>(static_cast<float>(mean + standard_deviation * normals[i]));
}

}  // namespace

void fill(const Tensor& out, float value) {
  constexpr const char* kOp = "fill";
  Device& device = out.device();
  with_element_type(kOp, out, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (value == 0.0f && !std::signbit(value)) {
      check(cudaMemsetAsync(out.raw(), 0, static_cast<std::size_t>(out.num_bytes()),
                            stream_of(device)),
            kOp);
    } else {
      map(device, kOp, out.num_elements(), Fill<T>{elements<T>(out), value});
    }
  });
}

void copy(const Tensor& from, const Tensor& to) {
  check(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<std::size_t>(from.num_bytes()),
                        cudaMemcpyDeviceToDevice, stream_of(from.device())),
        "copy");
}

void copy_from_host(const void* from, const Tensor& to) {
  constexpr const char* kOp = "copy_from_host";
  check(cudaMemcpyAsync(to.raw(), from, static_cast<std::size_t>(to.num_bytes()),
                        cudaMemcpyHostToDevice, stream_of(to.device())),
        kOp);
  check(cudaStreamSynchronize(stream_of(to.device())), kOp);
}

void copy_to_host(const Tensor& from, void* to) {
  constexpr const char* kOp = "copy_to_host";
  check(cudaMemcpyAsync(to, from.raw(), static_cast<std::size_t>(from.num_bytes()),
                        cudaMemcpyDeviceToHost, stream_of(from.device())),
        kOp);
  check(cudaStreamSynchronize(stream_of(from.device())), kOp);
}

void add(const Tensor& a, const Tensor& b, const Tensor& out) {
  constexpr const char* kOp = "add";
  with_element_type(kOp, a, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    map(a.device(), kOp, a.num_elements(),
        Add<T>{elements<T>(a), elements<T>(b), elements<T>(out)});
  });
}

void scale(const Tensor& x, float factor) {
  constexpr const char* kOp = "scale";
  with_element_type(kOp, x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    map(x.device(), kOp, x.num_elements(), Scale<T>{elements<T>(x), factor});
  });
}

void cast(const Tensor& from, const Tensor& to) {
  constexpr const char* kOp = "cast";
  const std::int64_t count = from.num_elements();
  if (from.dtype() == DType::f32) {
    map(from.device(), kOp, count, Cast<float, bf16>{elements<float>(from), elements<bf16>(to)});
  } else {
    map(from.device(), kOp, count, Cast<bf16, float>{elements<bf16>(from), elements<float>(to)});
  }
}

double sum_of_squares(const Tensor& x) {
  return wait_for_sum<Square>("sum_of_squares", x);
}

double sum(const Tensor& x) {
  return wait_for_sum<Itself>("sum", x);
}

// A double counts to 2^53 without an error.
std::int64_t count_nonfinite(const Tensor& x) {
  return static_cast<std::int64_t>(wait_for_sum<IsNonfinite>("count_nonfinite", x));
}

void fill_normal(const Tensor& out, float mean, float standard_deviation, std::uint64_t seed,
                 std::uint64_t stream) {
  constexpr const char* kOp = "fill_normal";
  with_element_type(kOp, out, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::int64_t num_groups = divide_up(out.num_elements(), kNormalGroup);
    launch(out.device(), kOp, {grid_of(divide_up(num_groups, kNormalThreads)), kNormalThreads},
           fill_normal_kernel<T>, elements<T>(out), out.num_elements(), mean, standard_deviation,
           seed, stream);
  });
}

}  // namespace chaski::cuda
