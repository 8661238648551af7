#include "app/bench/memory_bandwidth.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

enum class Stores { cached, streaming };

// Floats; of a whole number of cache lines.
struct Piece {
  float* a;
  const float* b;
  const float* c;
  std::int64_t count;
};

void read_piece(const Piece& piece) {
  constexpr int kLanes = 32;
  constexpr int kAhead = 1024;
  std::array<float, kLanes> sums{};
  for (std::int64_t i = 0; i + kLanes <= piece.count; i += kLanes) {
    // The processor's own prefetching stops at each page.
    for (int lane = 0; lane < kLanes; lane += 16) __builtin_prefetch(piece.a + i + lane + kAhead);
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += piece.a[i + lane];
  }
  // Never so, which the compiler does not know: it has to read.
  if (std::all_of(sums.begin(), sums.end(), [](float sum) { return sum == -1.0f; })) *piece.a = 0;
}

// value(i) gives four floats for a[i … i+3].
#if defined(__SSE2__)
template <typename Value>
void stream(const Piece& piece, const Value& value) {
  for (std::int64_t i = 0; i < piece.count; i += 4) _mm_stream_ps(piece.a + i, value(i));
  _mm_sfence();
}
#endif

template <Stores S>
void write_piece(const Piece& piece) {
#if defined(__SSE2__)
  if (S == Stores::streaming) return stream(piece, [](std::int64_t) { return _mm_setzero_ps(); });
#endif
  std::memset(piece.a, 0, static_cast<std::size_t>(piece.count) * sizeof(float));
}

template <Stores S>
void copy_piece(const Piece& piece) {
#if defined(__SSE2__)
  if (S == Stores::streaming)
    return stream(piece, [&](std::int64_t i) { return _mm_load_ps(piece.b + i); });
#endif
  std::memcpy(piece.a, piece.b, static_cast<std::size_t>(piece.count) * sizeof(float));
}

template <Stores S>
void triad_piece(const Piece& piece) {
  constexpr float kFactor = 0.5f;
#if defined(__SSE2__)
  if (S == Stores::streaming) {
    const __m128 factor = _mm_set1_ps(kFactor);
    return stream(piece, [&](std::int64_t i) {
      return _mm_add_ps(_mm_load_ps(piece.b + i), _mm_mul_ps(factor, _mm_load_ps(piece.c + i)));
    });
  }
#endif
  float* __restrict a = piece.a;
  for (std::int64_t i = 0; i < piece.count; ++i) a[i] = piece.b[i] + kFactor * piece.c[i];
}

// Each thread works on a piece of its own.
template <void (*Run)(const Piece& piece)>
void in_pieces(const Tensor& a, const Tensor& b, const Tensor& c) {
  const int threads = a.device().num_threads();
  const std::int64_t share = a.num_elements() / threads;
  const auto begin = [&](const Tensor& x, int thread) {
    return x ? x.f32() + thread * share : nullptr;
  };
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread)
    Run({begin(a, thread), begin(b, thread), begin(c, thread), share});
}

// One kind of traffic over the whole memory, which it takes for `arrays` arrays.
struct Traffic {
  const char* name;
  int arrays;
  void (*run)(const Tensor& a, const Tensor& b, const Tensor& c);
};

constexpr Traffic kCpuTraffic[] = {
    {"read", 1, in_pieces<read_piece>},
    {"write", 1, in_pieces<write_piece<Stores::cached>>},
    {"write", 1, in_pieces<write_piece<Stores::streaming>>},
    {"copy", 2, in_pieces<copy_piece<Stores::cached>>},
    {"copy", 2, in_pieces<copy_piece<Stores::streaming>>},
    {"triad", 3, in_pieces<triad_piece<Stores::cached>>},
    {"triad", 3, in_pieces<triad_piece<Stores::streaming>>},
};
// By the GPU's own ops.
constexpr Traffic kGpuTraffic[] = {
    {"write", 1, [](const Tensor& a, const Tensor&, const Tensor&) { fill(a, 0.0f); }},
    {"copy", 2, [](const Tensor& a, const Tensor& b, const Tensor&) { copy(b, a); }},
    {"triad", 3, [](const Tensor& a, const Tensor& b, const Tensor& c) { add(b, c, a); }},
};

bool is_on_gpu(const Tensor& memory) {
  return memory.device().backend() == Backend::cuda;
}

std::span<const Traffic> traffic_of(const Tensor& memory) {
  return is_on_gpu(memory) ? std::span<const Traffic>(kGpuTraffic) : kCpuTraffic;
}

std::int64_t array_elements(const Tensor& memory, const Traffic& traffic) {
  constexpr std::int64_t kLine = 32;  // floats; whole cache lines and whole steps of read_piece
  const std::int64_t unit = memory.device().num_threads() * kLine;
  return memory.num_elements() / (traffic.arrays * unit) * unit;
}

void run(const Traffic& traffic, const Tensor& memory) {
  const std::int64_t count = array_elements(memory, traffic);
  const auto array = [&](int i) {
    return i < traffic.arrays ? memory.rows(i * count, count) : Tensor();
  };
  traffic.run(array(0), array(1), array(2));
}

}  // namespace

std::vector<BenchSeries> MemoryBandwidth::series() const {
  std::vector<BenchSeries> result;
  for (const Traffic& traffic : traffic_of(memory_)) {
    result.push_back({traffic.name, [traffic, memory = memory_] {
                        return timed(memory.device(), [&] { run(traffic, memory); });
                      }});
  }
  return result;
}

MemoryBandwidth::Rates MemoryBandwidth::rates(const std::vector<BenchSeries>& measured) const {
  const auto best = [&](const std::string& name) {
    double rate = 0.0;
    for (const Traffic& traffic : traffic_of(memory_)) {
      if (traffic.name != name) continue;
      const auto floats = static_cast<double>(traffic.arrays * array_elements(memory_, traffic));
      for (const BenchSeries& series : measured) {
        if (series.name != name || series.seconds.empty()) continue;
        rate = std::max(rate, 1e-9 * sizeof(float) * floats / spread_of(series.seconds).best);
      }
    }
    return rate;
  };
  return {best(is_on_gpu(memory_) ? "copy" : "read"), best("write"), best("copy"), best("triad")};
}

nlohmann::json to_json(const MemoryBandwidth::Rates& rates) {
  return {
      {"read", rates.read}, {"write", rates.write}, {"copy", rates.copy}, {"triad", rates.triad}};
}

}  // namespace chaski
