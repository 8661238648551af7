#include "kernels/moc/decode_cpu.h"

#include "kernels/elementwise/vector_math.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// Rows that are read side by side: several streams are read faster than one.
constexpr std::int64_t kRows = 4;
// Rows that all tokens take before the next ones are read from memory.
constexpr std::int64_t kGroup = 16;
// Columns of a group's rows that fit a cache beside those of some tokens.
constexpr std::int64_t kColumns = 256;
// Parts of the channels that are summed apart, so that threads read whole rows: two threads that
// read half of each row take as long as one that reads it all. As many whatever the threads, for
// the same bits.
constexpr std::int64_t kSegments = 8;
// Columns of the result that a thread takes at least where there are more threads than segments.
constexpr std::int64_t kMinColumns = 128;
constexpr std::int64_t kFloatsOfCacheLine = 16;
constexpr std::int64_t kMaxTokens = MocDecodeProblem::kMaxTokens;

std::int64_t least(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

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

std::int64_t partial_words(const MocDecodeProblem& p) {
  return kSegments * p.tokens * p.hidden;
}
std::int64_t scratch_words(const MocDecodeProblem& p) {
  return partial_words(p) + 3 * p.tokens * p.keep + 3 * p.size + 1;
}

// Of one token it is the token's own list.
void list_one(const MocDecodeProblem& p, const std::uint16_t* selected, Union& all) {
  for (std::int32_t k = 0; k < p.keep; ++k) {
    all.channels[k] = selected[k];
    all.first[k] = k;
    all.tokens[k] = 0;
    all.places[k] = k;
  }
  all.first[p.keep] = static_cast<std::int32_t>(p.keep);
  all.count = p.keep;
}

Union unite(const MocDecodeProblem& p, const std::uint16_t* selected, std::int32_t* scratch) {
  const std::int64_t entries = p.tokens * p.keep;
  Union all{0, scratch, scratch + p.size, scratch + 2 * p.size + 1,
            scratch + 2 * p.size + 1 + entries};
  if (p.tokens == 1) {
    list_one(p, selected, all);
    return all;
  }
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

// Neighbours in the union, and which of them each token takes.
struct Group {
  std::int64_t count;
  std::int64_t asked_for;  // rows of the next group with each quad of this one's
  const float* rows[kGroup];
  // Of the group after it, rows that are asked for while this one is used.
  const float* next[kGroup];
  struct Token {
    std::int64_t count;
    const float* rows[kGroup];
    std::int64_t places[kGroup];
  } tokens[kMaxTokens];
};

// What is asked for is spread over all that the group has to do: memory would else have nothing to
// do while the last of it is done. There are at least as many quads as the group has kRows rows.
std::int64_t share_of_quad(const MocDecodeProblem& p, const Group& group) {
  std::int64_t quads = 0;
  for (std::int64_t token = 0; token < p.tokens; ++token)
    quads += (group.tokens[token].count + kRows - 1) / kRows;
  return 2 * quads < kGroup ? 4 : quads < kGroup ? 2 : 1;
}

// Places in the union.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};

// The first group of a range, of which columns from `column` on are read.
void gather(const MocDecodeProblem& p, const Union& all, const float* weight, Range range,
            std::int64_t column, Group& group) {
  const std::int64_t begin = range.begin;
  const auto row_of = [&](std::int64_t c) {
    return weight + all.channels[least(c, range.end - 1)] * p.hidden + column;
  };
  group.count = least(kGroup, range.end - begin);
  for (std::int64_t token = 0; token < p.tokens; ++token) group.tokens[token].count = 0;
  for (std::int64_t i = 0; i < kGroup; ++i) {
    group.rows[i] = row_of(begin + i);
    group.next[i] = row_of(begin + kGroup + i);
  }
  for (std::int64_t i = 0; i < group.count; ++i) {
    for (std::int32_t e = all.first[begin + i]; e < all.first[begin + i + 1]; ++e) {
      Group::Token& token = group.tokens[all.tokens[e]];
      token.rows[token.count] = group.rows[i];
      token.places[token.count++] = all.places[e];
    }
  }
  group.asked_for = share_of_quad(p, group);
}

// Rows of the next group to ask for while one takes up to kRows rows of a token, at the same
// columns.
struct Asked {
  std::int64_t count;  // 0, 1, 2 or 4
  const float* const* rows;
};

// work(token, its first row, how many, rows to ask for) for up to kRows of a token's rows at a
// time, a quad.
template <typename Work>
[[gnu::always_inline]] inline void for_each_quad(const MocDecodeProblem& p, const Group& group,
                                                 const Work& work) {
  const std::int64_t share = group.asked_for;
  std::int64_t asked = 0;
  for (std::int64_t token = 0; token < p.tokens; ++token) {
    const std::int64_t count = group.tokens[token].count;
    for (std::int64_t i = 0; i < count; i += kRows, asked += share) {
      work(token, i, least(kRows, count - i),
           asked < kGroup ? Asked{share, group.next + asked} : Asked{0, nullptr});
    }
  }
}

// Into the second cache: the first one has room for fewer requests under way than memory can serve.
template <std::int64_t kAsked>
[[gnu::always_inline]] inline void ask_for(const float* const* rows, std::int64_t column) {
#pragma GCC unroll 4
  for (std::int64_t r = 0; r < kAsked; ++r) __builtin_prefetch(rows[r] + column, 0, 2);
}

// run.operator()<asked.count>().
template <typename Run>
[[gnu::always_inline]] inline void with_count_of(const Asked& asked, const Run& run) {
  switch (asked.count) {
    case 0:
      return run.template operator()<0>();
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    default:
      return run.template operator()<4>();
  }
}

float sum_of(Vector v) {
  float lanes[kVectorLanes];
  __builtin_memcpy(lanes, &v, sizeof lanes);
  for (int width = kVectorLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// sums[r] = x · rows[r], each in the same order whatever rows are beside it.
template <std::int64_t kAsked>
void dot_rows(const float* x, const float* const* rows, const float* const* next,
              std::int64_t count, float* sums) {
  Vector partial[kRows] = {};
  std::int64_t i = 0;
  for (; i + kFloatsOfCacheLine <= count; i += kFloatsOfCacheLine) {
    ask_for<kAsked>(next, i);
#pragma GCC unroll 4
    for (std::int64_t v = i; v < i + kFloatsOfCacheLine; v += kVectorLanes) {
      const Vector factor = at(x + v);
#pragma GCC unroll 4
      for (std::int64_t r = 0; r < kRows; ++r) partial[r] += factor * at(rows[r] + v);
    }
  }
  for (std::int64_t r = 0; r < kRows; ++r) {
    sums[r] = sum_of(partial[r]);
    for (std::int64_t j = i; j < count; ++j) sums[r] += x[j] * rows[r][j];
  }
}

// products[place] = SiLU(gate) · (up · x) of every place.
void multiply_up(const MocDecodeProblem& p, const float* x, const float* up, const float* gate,
                 const Union& all, float* products) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (std::int64_t begin = 0; begin < all.count; begin += kGroup) {
    Group group;
    gather(p, all, up, {begin, all.count}, 0, group);
    for_each_quad(
        p, group,
        [&](std::int64_t token, std::int64_t first, std::int64_t count, const Asked& asked) {
          const Group::Token& mine = group.tokens[token];
          const float* rows[kRows];
          for (std::int64_t r = 0; r < kRows; ++r) rows[r] = mine.rows[first + least(r, count - 1)];
          float sums[kRows];
          const float* x_of_token = x + token * p.hidden;
          with_count_of(asked, [&]<std::int64_t kAsked>() {
            dot_rows<kAsked>(x_of_token, rows, asked.rows, p.hidden, sums);
          });
          for (std::int64_t r = 0; r < count; ++r) {
            const std::int64_t place = mine.places[first + r];
            const float g = gate[place];
            products[place] = g * sigmoid_of(g) * sums[r];
          }
        });
  }
}

// out += Σ factors[r] · rows[r], in this order for each element.
template <std::int64_t kCount, std::int64_t kAsked>
void add_rows(const float* const* rows, const float* const* next, const float* factors, float* out,
              std::int64_t begin, std::int64_t end) {
  std::int64_t i = begin;
  for (; i + kFloatsOfCacheLine <= end; i += kFloatsOfCacheLine) {
    ask_for<kAsked>(next, i);
#pragma GCC unroll 4
    for (std::int64_t v = i; v < i + kFloatsOfCacheLine; v += kVectorLanes) {
      Vector sum = at(out + v);
#pragma GCC unroll 4
      for (std::int64_t r = 0; r < kCount; ++r) sum += (Vector{} + factors[r]) * at(rows[r] + v);
      at(out + v) = sum;
    }
  }
  for (; i < end; ++i) {
    for (std::int64_t r = 0; r < kCount; ++r) out[i] += factors[r] * rows[r][i];
  }
}

template <std::int64_t kAsked>
void add_up_to_four(std::int64_t rows_count, const float* const* rows, const float* const* next,
                    const float* factors, float* out, std::int64_t begin, std::int64_t end) {
  static_assert(kRows == 4);
  switch (rows_count) {
    case 1:
      return add_rows<1, kAsked>(rows, next, factors, out, begin, end);
    case 2:
      return add_rows<2, kAsked>(rows, next, factors, out, begin, end);
    case 3:
      return add_rows<3, kAsked>(rows, next, factors, out, begin, end);
    default:
      return add_rows<4, kAsked>(rows, next, factors, out, begin, end);
  }
}

// Some channels of the union and, of the result, the columns [column, column + width).
struct Segment {
  Range channels;
  std::int64_t column;
  std::int64_t width;
};

// The share of a segment in all tokens' results.
void multiply_segment(const MocDecodeProblem& p, const float* down, const Union& all,
                      const float* products, const Segment& segment, float* out) {
  const std::int64_t column = segment.column;
  for (std::int64_t token = 0; token < p.tokens; ++token) {
    float* mine = out + token * p.hidden + column;
    for (std::int64_t i = 0; i < segment.width; ++i) mine[i] = 0.0f;
  }
  const std::int64_t block = p.tokens == 1 ? segment.width : kColumns;
  for (Range left = segment.channels; left.begin < left.end; left.begin += kGroup) {
    Group group;
    gather(p, all, down, left, column, group);
    for (std::int64_t begin = 0; begin < segment.width; begin += block) {
      const std::int64_t end = least(begin + block, segment.width);
      for_each_quad(
          p, group,
          [&](std::int64_t token, std::int64_t row, std::int64_t count, const Asked& asked) {
            const Group::Token& mine = group.tokens[token];
            float factors[kRows];
            for (std::int64_t r = 0; r < count; ++r) factors[r] = products[mine.places[row + r]];
            float* mine_out = out + token * p.hidden + column;
            with_count_of(asked, [&]<std::int64_t kAsked>() {
              add_up_to_four<kAsked>(count, mine.rows + row, asked.rows, factors, mine_out, begin,
                                     end);
            });
          });
    }
  }
}

// Where the channels of a segment begin in the union: bounds of channels, not of the union, so that
// a token's sums do not depend on what others selected.
std::int64_t begin_of_segment(const MocDecodeProblem& p, const Union& all, std::int64_t segment) {
  const std::int64_t channel = segment * p.size / kSegments;
  std::int64_t begin = 0;
  std::int64_t end = all.count;
  while (begin < end) {
    const std::int64_t middle = (begin + end) / 2;
    if (all.channels[middle] < channel) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

void add_segments(const MocDecodeProblem& p, const float* partial, float* out) {
  const std::int64_t count = p.tokens * p.hidden;
#pragma omp for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    float sum = partial[i];
    for (std::int64_t segment = 1; segment < kSegments; ++segment)
      sum += partial[segment * count + i];
    out[i] = sum;
  }
}

void multiply_down(const MocDecodeProblem& p, const float* down, const Union& all,
                   const float* products, float* partial, float* out) {
  const std::int64_t most = p.hidden < kMinColumns ? 1 : p.hidden / kMinColumns;
  const std::int64_t strips = least((p.threads + kSegments - 1) / kSegments, most);
  const std::int64_t lines = (p.hidden + kFloatsOfCacheLine - 1) / kFloatsOfCacheLine;
  const std::int64_t width = (lines + strips - 1) / strips * kFloatsOfCacheLine;
#pragma omp parallel num_threads(p.threads)
  {
    // Dynamic: a segment has as many rows to read as were selected of it.
#pragma omp for schedule(dynamic) collapse(2)
    for (std::int64_t segment = 0; segment < kSegments; ++segment) {
      for (std::int64_t column = 0; column < p.hidden; column += width) {
        const Range channels = {begin_of_segment(p, all, segment),
                                begin_of_segment(p, all, segment + 1)};
        multiply_segment(p, down, all, products,
                         {channels, column, least(width, p.hidden - column)},
                         partial + segment * p.tokens * p.hidden);
      }
    }
    add_segments(p, partial, out);
  }
}

void run(const MocDecodeProblem& p, const float* x, const float* up, const float* down_transposed,
         const MocDecodeSelection& selection, float* out, void* scratch) {
  auto* partial = static_cast<float*>(scratch);
  float* products = partial + partial_words(p);
  const Union all =
      unite(p, selection.channels, reinterpret_cast<std::int32_t*>(products + p.tokens * p.keep));
  multiply_up(p, x, up, selection.gate, all, products);
  multiply_down(p, down_transposed, all, products, partial, out);
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
