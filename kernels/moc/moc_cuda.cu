#include "kernels/device/cuda_device.h"
#include "kernels/device/cuda_launch.h"
#include "kernels/moc/moc_cuda.h"

namespace chaski::cuda {
namespace {

// A block takes a token. Its row of keys, later of places, is in shared memory: 4 bytes a channel.
constexpr int kThreads = 256;
constexpr unsigned kNoPlace = 0xffffffffu;

struct Selection {
  int size;
  int keep;
  bool two_of_eight;
  bool by_silu_magnitude;
  bool bitmap;
  int index_bytes;
};

__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// Unsigned integers in the order of the floats, NaN of either sign above all, one for both zeros.
__device__ unsigned key_of(const Selection& s, float gate) {
  const float x = s.by_silu_magnitude ? fabsf(gate * sigmoid(gate)) : gate;
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits >> 31 != 0 && x == x ? ~bits : bits | 0x80000000u;
}

// The sum of the lower threads' numbers; `total` of all, in every thread.
__device__ unsigned exclusive_scan(unsigned x, unsigned& total) {
  __shared__ unsigned warps[kThreads / kWarpSize];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  unsigned sum = x;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const unsigned below = __shfl_up_sync(kFullWarp, sum, offset);
    if (lane >= offset) sum += below;
  }
  __syncthreads();
  if (lane == kWarpSize - 1) warps[warp] = sum;
  __syncthreads();
  unsigned before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarpSize; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before + sum - x;
}

// Kept are all keys above `key` and the first `ties` of those that equal it.
struct Threshold {
  unsigned key;
  unsigned ties;
};

// Radix select, the highest 8 bits first: each pass counts the keys that share the bits found so
// far by their next 8.
__device__ Threshold find_threshold(const unsigned* keys, const Selection& s) {
  __shared__ unsigned counts[256];
  __shared__ Threshold found;
  static_assert(kThreads == 256);
  Threshold threshold = {0, static_cast<unsigned>(s.keep)};
  for (int shift = 24; shift >= 0; shift -= 8) {
    const unsigned known = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < s.size; i += kThreads) {
      if ((keys[i] & known) == threshold.key) atomicAdd(&counts[keys[i] >> shift & 0xffu], 1u);
    }
    __syncthreads();
    // From the largest digit down.
    const unsigned digit = 255 - threadIdx.x;
    const unsigned count = counts[digit];
    unsigned total = 0;
    const unsigned above = exclusive_scan(count, total);
    if (above < threshold.ties && threshold.ties <= above + count)
      found = {threshold.key | digit << shift, threshold.ties - above};
    __syncthreads();
    threshold = found;
  }
  return threshold;
}

// Replaces each key by its place among the kept channels, or kNoPlace. A thread takes neighbours.
__device__ void place_topk(unsigned* row, const Selection& s) {
  const Threshold threshold = find_threshold(row, s);
  const int each = (s.size + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, s.size);
  const int end = min(begin + each, s.size);
  unsigned above = 0;
  unsigned equal = 0;
  for (int i = begin; i < end; ++i) {
    above += row[i] > threshold.key ? 1 : 0;
    equal += row[i] == threshold.key ? 1 : 0;
  }
  // Neither sum exceeds 16 bits.
  unsigned total = 0;
  const unsigned before = exclusive_scan(above << 16 | equal, total);
  above = before >> 16;
  equal = before & 0xffffu;
  for (int i = begin; i < end; ++i) {
    const bool is_above = row[i] > threshold.key;
    const bool is_equal = row[i] == threshold.key;
    const bool kept = is_above || (is_equal && equal < threshold.ties);
    row[i] = kept ? above + min(equal, threshold.ties) : kNoPlace;
    above += is_above ? 1 : 0;
    equal += is_equal ? 1 : 0;
  }
  __syncthreads();
}

__device__ void place_of_eight(unsigned* row, const Selection& s) {
  for (int group = threadIdx.x; group * 8 < s.size; group += kThreads) {
    const int begin = group * 8;
    const int end = min(begin + 8, s.size);
    int first = begin;
    int second = -1;
    for (int i = begin + 1; i < end; ++i) {
      if (row[i] > row[first]) {
        second = first;
        first = i;
      } else if (second < 0 || row[i] > row[second]) {
        second = i;
      }
    }
    for (int i = begin; i < end; ++i) {
      const bool later =
          (i == first && second >= 0 && second < first) || (i == second && first < second);
      row[i] = i == first || i == second ? 2 * group + (later ? 1 : 0) : kNoPlace;
    }
  }
  __syncthreads();
}

// The places of a token's gates.
template <typename T>
__device__ void select_row(unsigned* row, const Selection& s, const T* gates) {
  for (int i = threadIdx.x; i < s.size; i += kThreads) row[i] = key_of(s, to_float(gates[i]));
  __syncthreads();
  s.two_of_eight ? place_of_eight(row, s) : place_topk(row, s);
}

// The stored form of the places.
__device__ void write_index(const unsigned* row, const Selection& s, unsigned char* index) {
  if (s.bitmap) {
    for (int byte = threadIdx.x; byte < s.index_bytes; byte += kThreads) {
      unsigned bits = 0;
      for (int b = 0; b < 8 && byte * 8 + b < s.size; ++b)
        bits |= (row[byte * 8 + b] != kNoPlace ? 1u : 0u) << b;
      index[byte] = static_cast<unsigned char>(bits);
    }
    return;
  }
  auto* channels = reinterpret_cast<unsigned short*>(index);
  for (int i = threadIdx.x; i < s.size; i += kThreads) {
    if (row[i] != kNoPlace) channels[row[i]] = static_cast<unsigned short>(i);
  }
}

__device__ void read_index(unsigned* row, const Selection& s, const unsigned char* index) {
  if (!s.bitmap) {
    for (int i = threadIdx.x; i < s.size; i += kThreads) row[i] = kNoPlace;
    __syncthreads();
    const auto* channels = reinterpret_cast<const unsigned short*>(index);
    for (int k = threadIdx.x; k < s.keep; k += kThreads) row[channels[k]] = k;
    __syncthreads();
    return;
  }
  const int each = (s.index_bytes + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, s.index_bytes);
  const int end = min(begin + each, s.index_bytes);
  unsigned kept = 0;
  for (int byte = begin; byte < end; ++byte) kept += __popc(index[byte]);
  unsigned total = 0;
  unsigned place = exclusive_scan(kept, total);
  for (int byte = begin; byte < end; ++byte) {
    for (int b = 0; b < 8 && byte * 8 + b < s.size; ++b)
      row[byte * 8 + b] = index[byte] >> b & 1 ? place++ : kNoPlace;
  }
  __syncthreads();
}

template <typename T>
struct Kept {
  T* gate;
  T* up;
  T* silu;     // may be null
  T* product;  // may be null
  unsigned char* index;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Selection s, const T* gate_up, Kept<T> kept, T* activation) {
  unsigned* row = dynamic_shared<unsigned>();
  const std::int64_t token = blockIdx.x;
  const T* gates = gate_up + token * 2 * s.size;
  const T* ups = gates + s.size;
  select_row(row, s, gates);
  write_index(row, s, kept.index + token * s.index_bytes);
  for (int i = threadIdx.x; i < s.size; i += kThreads) {
    T product = from_float<T>(0.0f);
    if (row[i] != kNoPlace) {
      const std::int64_t at = token * s.keep + row[i];
      const float gate = to_float(gates[i]);
      const float silu = gate * sigmoid(gate);
      product = from_float<T>(silu * to_float(ups[i]));
      kept.gate[at] = gates[i];
      kept.up[at] = ups[i];
      if (kept.silu != nullptr) kept.silu[at] = from_float<T>(silu);
      if (kept.product != nullptr) kept.product[at] = product;
    }
    activation[token * s.size + i] = product;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    select_kernel(Selection s, const T* gates, Kept<T> kept, unsigned short* places) {
  unsigned* row = dynamic_shared<unsigned>();
  const std::int64_t token = blockIdx.x;
  select_row(row, s, gates + token * s.size);
  write_index(row, s, kept.index + token * s.index_bytes);
  for (int i = threadIdx.x; i < s.size; i += kThreads) {
    places[token * s.size + i] = static_cast<unsigned short>(row[i]);
    if (row[i] != kNoPlace) kept.gate[token * s.keep + row[i]] = gates[token * s.size + i];
  }
}

// dactivation may be activation: each element is read before it is written by the same thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Selection s, Kept<T> kept, const T* dactivation, T* dgate_up, T* activation) {
  unsigned* row = dynamic_shared<unsigned>();
  const std::int64_t token = blockIdx.x;
  read_index(row, s, kept.index + token * s.index_bytes);
  T* dgates = dgate_up + token * 2 * s.size;
  for (int i = threadIdx.x; i < s.size; i += kThreads) {
    float dgate = 0.0f;
    float dup = 0.0f;
    float product = 0.0f;
    if (row[i] != kNoPlace) {
      const std::int64_t at = token * s.keep + row[i];
      const float gate = to_float(kept.gate[at]);
      const float up = to_float(kept.up[at]);
      const float d = to_float(dactivation[token * s.size + i]);
      const float share = sigmoid(gate);
      const float silu = gate * share;
      // With the rounding that it has where it is stored.
      const float stored = to_float(kept.silu != nullptr ? kept.silu[at] : from_float<T>(silu));
      dgate = d * up * share * (1.0f + gate * (1.0f - share));
      dup = d * stored;
      product = kept.product != nullptr ? to_float(kept.product[at]) : silu * up;
    }
    dgates[i] = from_float<T>(dgate);
    dgates[s.size + i] = from_float<T>(dup);
    if (activation != nullptr) activation[token * s.size + i] = from_float<T>(product);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_kernel(Selection s, Kept<T> kept, int* counts, int* positive) {
  unsigned* row = dynamic_shared<unsigned>();
  const std::int64_t token = blockIdx.x;
  read_index(row, s, kept.index + token * s.index_bytes);
  unsigned mine = 0;
  for (int i = threadIdx.x; i < s.size; i += kThreads) {
    if (row[i] == kNoPlace) continue;
    atomicAdd(&counts[i], 1);
    mine += to_float(kept.gate[token * s.keep + row[i]]) > 0.0f ? 1 : 0;
  }
  unsigned total = 0;
  exclusive_scan(mine, total);
  if (threadIdx.x != 0) return;
  auto* halves = reinterpret_cast<unsigned*>(positive);  // not aligned to 8 bytes
  if (atomicAdd(&halves[0], total) > 0xffffffffu - total) atomicAdd(&halves[1], 1u);
}

Selection selection_of(const MocShape& shape) {
  return {static_cast<int>(shape.intermediate_size), static_cast<int>(shape.keep),
          shape.pattern == MocPattern::two_of_eight, shape.score == MocScore::silu_magnitude,
          shape.index == MocIndex::bitmap,           static_cast<int>(shape.index_bytes())};
}

LaunchShape launch_shape(const MocShape& shape, std::int64_t tokens) {
  return {grid_of(tokens), kThreads,
          static_cast<std::size_t>(shape.intermediate_size) * sizeof(unsigned)};
}

template <typename T>
Kept<T> kept_of(const MocKept& kept) {
  return {elements<T>(kept.gate), elements<T>(kept.up), elements<T>(kept.silu),
          elements<T>(kept.product), kept.index.as<std::uint8_t>()};
}

}  // namespace

void moc_forward(const MocShape& shape, const Tensor& gate_up, const MocKept& kept,
                 const Tensor& activation) {
  with_element_type("moc_forward", gate_up, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(gate_up.device(), "moc_forward", launch_shape(shape, gate_up.shape().num_rows()),
           forward_kernel<T>, selection_of(shape), elements<T>(gate_up), kept_of<T>(kept),
           elements<T>(activation));
  });
}

void moc_select(const MocShape& shape, const Tensor& gates, const Tensor& kept_gates,
                const Tensor& channels, const Tensor& places) {
  // The places are those of kNoPlace cut to 16 bits.
  static_assert(static_cast<std::uint16_t>(kNoPlace) == kMocNoPlace);
  with_element_type("moc_select", gates, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Kept<T> kept{elements<T>(kept_gates), nullptr, nullptr, nullptr,
                       channels.as<std::uint8_t>()};
    launch(gates.device(), "moc_select", launch_shape(shape, gates.shape().num_rows()),
           select_kernel<T>, selection_of(shape), elements<T>(gates), kept,
           static_cast<unsigned short*>(places.raw()));
  });
}

void moc_backward(const MocShape& shape, const MocKept& kept, const Tensor& dactivation,
                  const Tensor& dgate_up, const Tensor& activation) {
  with_element_type("moc_backward", dactivation, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(dactivation.device(), "moc_backward",
           launch_shape(shape, dactivation.shape().num_rows()), backward_kernel<T>,
           selection_of(shape), kept_of<T>(kept), elements<T>(dactivation), elements<T>(dgate_up),
           elements<T>(activation));
  });
}

void moc_count(const MocShape& shape, const MocKept& kept, const Tensor& counts,
               const Tensor& positive) {
  with_element_type("moc_count", kept.gate, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(kept.gate.device(), "moc_count", launch_shape(shape, kept.gate.shape().num_rows()),
           count_kernel<T>, selection_of(shape), kept_of<T>(kept), counts.i32(), positive.i32());
  });
}

}  // namespace chaski::cuda
