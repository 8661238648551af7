#include "app/bench/memory_bandwidth.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/core.h>
#include <functional>
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

// One kind of traffic over the whole memory, which it takes for `arrays` arrays.
struct Traffic {
  const char* name;
  int arrays;
  void (*run)(const Piece& piece);
};

constexpr Traffic kTraffic[] = {
    {"read", 1, read_piece},
    {"write", 1, write_piece<Stores::cached>},
    {"write", 1, write_piece<Stores::streaming>},
    {"copy", 2, copy_piece<Stores::cached>},
    {"copy", 2, copy_piece<Stores::streaming>},
    {"triad", 3, triad_piece<Stores::cached>},
    {"triad", 3, triad_piece<Stores::streaming>},
};

constexpr std::int64_t kLine = 32;  // floats; whole cache lines and whole steps of read_piece

std::int64_t array_elements(const Tensor& memory, const Traffic& traffic, int threads) {
  return memory.num_elements() / (traffic.arrays * threads * kLine) * threads * kLine;
}

void run(const Traffic& traffic, const Tensor& memory, int threads) {
  const std::int64_t count = array_elements(memory, traffic, threads);
  float* base = memory.f32();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    const std::int64_t share = count / threads;
    float* a = base + thread * share;
    traffic.run({a, traffic.arrays > 1 ? a + count : nullptr,
                 traffic.arrays > 2 ? a + 2 * count : nullptr, share});
  }
}

// By the GPU's own ops, over the first, second … of the arrays.
struct GpuTraffic {
  const char* name;
  int arrays;
  void (*run)(const Tensor& a, const Tensor& b, const Tensor& c);
};

constexpr GpuTraffic kGpuTraffic[] = {
    {"write", 1, [](const Tensor& a, const Tensor&, const Tensor&) { fill(a, 0.0f); }},
    {"copy", 2, [](const Tensor& a, const Tensor& b, const Tensor&) { copy(b, a); }},
    {"triad", 3, [](const Tensor& a, const Tensor& b, const Tensor& c) { add(b, c, a); }},
};

std::int64_t array_elements(const Tensor& memory, const GpuTraffic& traffic) {
  return memory.num_elements() / (traffic.arrays * kLine) * kLine;
}

void run(const GpuTraffic& traffic, const Tensor& memory) {
  const std::int64_t count = array_elements(memory, traffic);
  const auto array = [&](int i) {
    return i < traffic.arrays ? memory.rows(i * count, count) : Tensor();
  };
  traffic.run(array(0), array(1), array(2));
}

// The best rate of the series of this name, each run of which moves so many floats.
double best_rate(const std::vector<BenchSeries>& measured, const std::string& name,
                 std::int64_t floats) {
  double rate = 0.0;
  for (const BenchSeries& series : measured) {
    if (series.name != name || series.seconds.empty()) continue;
    rate = std::max(
        rate, 1e-9 * sizeof(float) * static_cast<double>(floats) / spread_of(series.seconds).best);
  }
  return rate;
}

}  // namespace

MemoryBandwidth::MemoryBandwidth(const Tensor& memory, int threads)
    : memory_(memory), threads_(threads) {}

std::vector<BenchSeries> MemoryBandwidth::series() const {
  std::vector<BenchSeries> result;
  if (memory_.device().backend() == Backend::cuda) {
    for (const GpuTraffic& traffic : kGpuTraffic) {
      result.push_back({traffic.name, [traffic, memory = memory_] {
                          return timed(memory.device(), [&] { run(traffic, memory); });
                        }});
    }
    return result;
  }
  for (const Traffic& traffic : kTraffic) {
    result.push_back({traffic.name, [traffic, memory = memory_, threads = threads_] {
                        return timed([&] { run(traffic, memory, threads); });
                      }});
  }
  return result;
}

MemoryBandwidth::Rates MemoryBandwidth::rates(const std::vector<BenchSeries>& measured) const {
  const auto rate = [&](const auto& traffic, std::int64_t elements) {
    return best_rate(measured, traffic.name, traffic.arrays * elements);
  };
  if (memory_.device().backend() == Backend::cuda) {
    const auto& [write, copy, triad] = kGpuTraffic;
    const double copied = rate(copy, array_elements(memory_, copy));
    return {copied, rate(write, array_elements(memory_, write)), copied,
            rate(triad, array_elements(memory_, triad))};
  }
  const auto best = [&](const std::string& name) {
    double best = 0.0;
    for (const Traffic& traffic : kTraffic) {
      if (name == traffic.name)
        best = std::max(best, rate(traffic, array_elements(memory_, traffic, threads_)));
    }
    return best;
  };
  return {best("read"), best("write"), best("copy"), best("triad")};
}

nlohmann::json to_json(const MemoryBandwidth::Rates& rates) {
  return {
      {"read", rates.read}, {"write", rates.write}, {"copy", rates.copy}, {"triad", rates.triad}};
}

std::string describe(const MemoryBandwidth::Rates& rates) {
  return fmt::format("memory {:.1f} read, {:.1f} write, {:.1f} copy, {:.1f} triad GB/s", rates.read,
                     rates.write, rates.copy, rates.triad);
}

}  // namespace chaski
