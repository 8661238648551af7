#include "kernels/moc_decode_cpu.h"

#include "kernels/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

typedef float Vector __attribute__((vector_size(4 * kVectorLanes), aligned(4), may_alias));

const Vector& load(const float* x) {
  return *reinterpret_cast<const Vector*>(x);
}
Vector& at(float* x) {
  return *reinterpret_cast<Vector*>(x);
}

// Sums of a row that are kept apart, so that additions need not wait for each other.
constexpr std::int64_t kPartialSums = 4;
// Rows that are added to the result at a time, so that it is loaded and stored less often.
constexpr std::int64_t kRowsAtATime = 4;
// Columns of the result that a thread takes at least: less of a row is read slowly.
constexpr std::int64_t kMinColumns = 128;
constexpr std::int64_t kFloatsOfCacheLine = 16;

// The channels that any token selected, in ascending order, and who did: the entries first[c] …
// first[c + 1] - 1 of channels[c] in the order of tokens. An entry is a token's place
// token · keep + k in the selection.
struct Union {
  std::int64_t count;
  std::int32_t* channels;  // [at most size]
  std::int32_t* first;     // [count + 1]
  std::int32_t* tokens;    // [tokens · keep], by entry
  std::int32_t* places;    // [tokens · keep], by entry
};

std::int64_t scratch_words(const MocDecodeProblem& p) {
  return 3 * p.tokens * p.keep + 3 * p.size + 1;
}

Union unite(const MocDecodeProblem& p, const std::uint16_t* selected, std::int32_t* scratch) {
  const std::int64_t entries = p.tokens * p.keep;
  Union all{0, scratch, scratch + p.size, scratch + 2 * p.size + 1,
            scratch + 2 * p.size + 1 + entries};
  std::int32_t* next = all.places + entries;  // [size]: how many, then where the next one goes
  for (std::int64_t c = 0; c < p.size; ++c) next[c] = 0;
  for (std::int64_t e = 0; e < entries; ++e) ++next[selected[e]];
  std::int32_t before = 0;
  for (std::int64_t c = 0; c < p.size; ++c) {
    const std::int32_t count = next[c];
    all.channels[all.count] = static_cast<std::int32_t>(c);
    all.first[all.count] = before;
    next[c] = before;
    before += count;
    all.count += count > 0 ? 1 : 0;
  }
  all.first[all.count] = before;
  for (std::int64_t token = 0, e = 0; token < p.tokens; ++token) {
    for (std::int64_t k = 0; k < p.keep; ++k, ++e) {
      const std::int32_t to = next[selected[e]]++;
      all.tokens[to] = static_cast<std::int32_t>(token);
      all.places[to] = static_cast<std::int32_t>(e);
    }
  }
  return all;
}

float sum_of(Vector v) {
  float lanes[kVectorLanes];
  __builtin_memcpy(lanes, &v, sizeof lanes);
  for (int width = kVectorLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// While a row is read the next one, which lies anywhere, is asked for.
template <bool kPrefetches>
[[gnu::always_inline]] inline float dot(const float* x, const float* w, const float* next,
                                        std::int64_t count) {
  constexpr std::int64_t kStep = kPartialSums * kVectorLanes;
  Vector sums[kPartialSums] = {};
  std::int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    if constexpr (kPrefetches) {
      for (std::int64_t j = 0; j < kStep; j += kFloatsOfCacheLine) __builtin_prefetch(next + i + j);
    }
#pragma GCC unroll 4
    for (std::int64_t s = 0; s < kPartialSums; ++s)
      sums[s] += load(x + i + s * kVectorLanes) * load(w + i + s * kVectorLanes);
  }
  for (; i + kVectorLanes <= count; i += kVectorLanes) sums[0] += load(x + i) * load(w + i);
  float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) sum += x[i] * w[i];
  return sum;
}

// products[place] = SiLU(gate) · (up · x) of every entry.
void multiply_up(const MocDecodeProblem& p, const float* x, const float* up, const float* gate,
                 const Union& all, float* products) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (std::int64_t c = 0; c < all.count; ++c) {
    const float* row = up + all.channels[c] * p.hidden;
    const float* next = c + 1 < all.count ? up + all.channels[c + 1] * p.hidden : row;
    for (std::int32_t e = all.first[c]; e < all.first[c + 1]; ++e) {
      const float* token = x + all.tokens[e] * p.hidden;
      const float sum = e == all.first[c] ? dot<true>(token, row, next, p.hidden)
                                          : dot<false>(token, row, next, p.hidden);
      const float g = gate[all.places[e]];
      products[all.places[e]] = g * sigmoid_of(g) * sum;
    }
  }
}

// out += Σ factors[r] · rows[r], in this order for each element.
template <std::int64_t kRows>
[[gnu::always_inline]] inline void add_rows(const float* const* rows, const float* const* next,
                                            const float* factors, float* out, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kFloatsOfCacheLine <= count; i += kFloatsOfCacheLine) {
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < kRows; ++r) __builtin_prefetch(next[r] + i);
#pragma GCC unroll 4
    for (std::int64_t v = 0; v < kFloatsOfCacheLine; v += kVectorLanes) {
      Vector sum = load(out + i + v);
#pragma GCC unroll 4
      for (std::int64_t r = 0; r < kRows; ++r)
        sum += (Vector{} + factors[r]) * load(rows[r] + i + v);
      at(out + i + v) = sum;
    }
  }
  for (; i < count; ++i) {
    for (std::int64_t r = 0; r < kRows; ++r) out[i] += factors[r] * rows[r][i];
  }
}

// Columns [begin, begin + count) of the only token's result.
void down_of_one(const MocDecodeProblem& p, const float* down, const Union& all,
                 const float* products, float* out, std::int64_t begin, std::int64_t count) {
  const auto row = [&](std::int64_t c) {
    return down + all.channels[c < all.count ? c : all.count - 1] * p.hidden + begin;
  };
  std::int64_t c = 0;
  for (; c + kRowsAtATime <= all.count; c += kRowsAtATime) {
    const float* rows[kRowsAtATime];
    const float* next[kRowsAtATime];
    for (std::int64_t r = 0; r < kRowsAtATime; ++r) {
      rows[r] = row(c + r);
      next[r] = row(c + kRowsAtATime + r);
    }
    add_rows<kRowsAtATime>(rows, next, products + c, out + begin, count);
  }
  for (; c < all.count; ++c) {
    const float* one = row(c);
    add_rows<1>(&one, &one, products + c, out + begin, count);
  }
}

void down_of_several(const MocDecodeProblem& p, const float* down, const Union& all,
                     const float* products, float* out, std::int64_t begin, std::int64_t count) {
  for (std::int64_t c = 0; c < all.count; ++c) {
    const float* row = down + all.channels[c] * p.hidden + begin;
    const float* next = c + 1 < all.count ? down + all.channels[c + 1] * p.hidden + begin : row;
    for (std::int32_t e = all.first[c]; e < all.first[c + 1]; ++e) {
      add_rows<1>(&row, e == all.first[c] ? &next : &row, products + all.places[e],
                  out + all.tokens[e] * p.hidden + begin, count);
    }
  }
}

void multiply_down(const MocDecodeProblem& p, const float* down, const Union& all,
                   const float* products, float* out) {
  const std::int64_t most = p.hidden / kMinColumns < 1 ? 1 : p.hidden / kMinColumns;
  const std::int64_t strips = p.threads < most ? p.threads : most;
  const std::int64_t lines = (p.hidden + kFloatsOfCacheLine - 1) / kFloatsOfCacheLine;
  const std::int64_t width = (lines + strips - 1) / strips * kFloatsOfCacheLine;
#pragma omp parallel for num_threads(static_cast <int>(strips)) schedule(static)
  for (std::int64_t strip = 0; strip < strips; ++strip) {
    const std::int64_t begin = strip * width;
    const std::int64_t count = begin + width < p.hidden ? width : p.hidden - begin;
    if (count <= 0) continue;
    for (std::int64_t token = 0; token < p.tokens; ++token) {
      for (std::int64_t i = begin; i < begin + count; ++i) out[token * p.hidden + i] = 0.0f;
    }
    (p.tokens == 1 ? down_of_one : down_of_several)(p, down, all, products, out, begin, count);
  }
}

void run(const MocDecodeProblem& p, const float* x, const float* up, const float* down_transposed,
         const MocDecodeSelection& selection, float* out, void* scratch) {
  auto* products = static_cast<float*>(scratch);
  const Union all =
      unite(p, selection.channels, reinterpret_cast<std::int32_t*>(products + p.tokens * p.keep));
  multiply_up(p, x, up, selection.gate, all, products);
  multiply_down(p, down_transposed, all, products, out);
}

// Squares of the matrix whose rows and columns are cache lines or more.
constexpr std::int64_t kTile = 32;

template <typename T>
void transpose_tile(const T* from, T* to, std::int64_t rows, std::int64_t cols, std::int64_t row,
                    std::int64_t col) {
  const std::int64_t row_end = row + kTile < rows ? row + kTile : rows;
  const std::int64_t col_end = col + kTile < cols ? col + kTile : cols;
  for (std::int64_t c = col; c < col_end; ++c) {
    for (std::int64_t r = row; r < row_end; ++r) to[c * rows + r] = from[r * cols + c];
  }
}

template <typename T>
void transpose(const T* from, T* to, std::int64_t rows, std::int64_t cols, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t col = 0; col < cols; col += kTile) {
    for (std::int64_t row = 0; row < rows; row += kTile)
      transpose_tile(from, to, rows, cols, row, col);
  }
}

}  // namespace

const MocDecodeKernels moc_decode_kernels = {scratch_words, run, transpose<std::uint32_t>,
                                             transpose<std::uint16_t>};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
