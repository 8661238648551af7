#include <algorithm>
#include <cstring>
#include <set>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/layers/swiglu.h"
#include "kernels/moc/decode.h"
#include "kernels/products/matmul.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::TestBackend;
using test::Values;

MocShape shape_of(std::int64_t size, std::int64_t keep) {
  return {size, keep, MocPattern::topk, MocScore::gate, MocIndex::bitmap};
}

MocShape of_eight(std::int64_t size) {
  return {size, MocShape::kept_of_eight(size), MocPattern::two_of_eight, MocScore::gate,
          MocIndex::uint16};
}

// The operands of one call, as plain numbers.
struct Case {
  std::int64_t tokens;
  std::int64_t hidden;
  MocShape shape;
  Values x, gates, up, down;  // down [hidden, size]
};

Case random_case(std::int64_t tokens, std::int64_t hidden, const MocShape& shape) {
  const std::int64_t size = shape.intermediate_size;
  return {tokens,
          hidden,
          shape,
          test::random_values(tokens * hidden, 1),
          test::random_values(tokens * size, 2, 3.0f),
          test::random_values(size * hidden, 3),
          test::random_values(hidden * size, 4)};
}

// A matrix whose rows are pages.
class PageRows {
 public:
  explicit PageRows(std::int64_t rows)
      : bytes_(static_cast<std::size_t>(rows) * kPageBytes),
        data_(static_cast<std::byte*>(
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~PageRows() { munmap(data_, bytes_); }
  PageRows(const PageRows&) = delete;
  PageRows& operator=(const PageRows&) = delete;

  float* row(std::int64_t i) const {
    return reinterpret_cast<float*>(data_ + static_cast<std::size_t>(i) * kPageBytes);
  }
  void forbid(std::int64_t i) const { ASSERT_EQ(mprotect(row(i), kPageBytes, PROT_NONE), 0); }

  inline static const auto kPageBytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

 private:
  std::size_t bytes_;
  std::byte* data_;
};

class MocDecodeTest : public test::OpTest {
 protected:
  struct Result {
    Values out;
    Values gate;
    std::vector<std::uint16_t> channels;
    std::int64_t rows_read;
  };

  Tensor transposed(const Tensor& matrix) {
    const Tensor result = poisoned_activations({matrix.dim(1), matrix.dim(0)});
    transpose(matrix, result);
    return result;
  }

  // With operands that begin where no vector can, where `shifted`.
  Result decode(const Case& c, bool shifted = false) {
    const std::int64_t size = c.shape.intermediate_size;
    const auto operand = [&](Shape shape, const Values& values) {
      return shifted ? shifted_activations(shape, values) : activations(shape, values);
    };
    const MocSelection selection{poisoned_activations({c.tokens, c.shape.keep}),
                                 zeros({c.tokens, 2 * c.shape.keep}, DType::u8)};
    const std::vector<std::uint8_t> poison(static_cast<std::size_t>(c.tokens * 2 * c.shape.keep),
                                           0xa5);
    copy_from_host(poison.data(), selection.channels);
    const Tensor out = poisoned_activations({c.tokens, c.hidden});
    moc_decode(c.shape, operand({c.tokens, c.hidden}, c.x), operand({c.tokens, size}, c.gates),
               {operand({size, c.hidden}, c.up), transposed(operand({c.hidden, size}, c.down))},
               selection, out);
    Result result{values(out), values(selection.gate), {}, 0};
    result.channels.resize(static_cast<std::size_t>(c.tokens * c.shape.keep));
    copy_to_host(selection.channels, result.channels.data());
    result.rows_read = num_selected_channels(c.shape, selection);
    return result;
  }

  // What moc_forward selects of the same gates.
  Result selected_by_forward(const Case& c) {
    const std::int64_t size = c.shape.intermediate_size;
    MocShape shape = c.shape;
    shape.index = MocIndex::uint16;
    Values gate_up;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      gate_up.insert(gate_up.end(), c.gates.begin() + t * size, c.gates.begin() + (t + 1) * size);
      gate_up.insert(gate_up.end(), static_cast<std::size_t>(size), 1.0f);
    }
    const MocKept kept{poisoned_activations({c.tokens, shape.keep}),
                       poisoned_activations({c.tokens, shape.keep}),
                       {},
                       {},
                       zeros({c.tokens, 2 * shape.keep}, DType::u8)};
    moc_forward(shape, activations({c.tokens, 2 * size}, gate_up), kept,
                poisoned_activations({c.tokens, size}));
    Result result{{}, values(kept.gate), {}, 0};
    result.channels.resize(static_cast<std::size_t>(c.tokens * shape.keep));
    copy_to_host(kept.index, result.channels.data());
    return result;
  }

  // The dense formula in double, with a mask.
  Reference masked_dense(const Case& c, const std::vector<std::uint16_t>& channels) {
    const std::int64_t size = c.shape.intermediate_size;
    const Values x = as_held(c.x);
    const Values gates = as_held(c.gates);
    const Values up = as_held(c.up);
    const Values down = as_held(c.down);
    Reference out(static_cast<std::size_t>(c.tokens * c.hidden), 0.0);
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      std::vector<bool> mask(static_cast<std::size_t>(size));
      for (std::int64_t k = 0; k < c.shape.keep; ++k)
        mask[channels[static_cast<std::size_t>(t * c.shape.keep + k)]] = true;
      for (std::int64_t i = 0; i < size; ++i) {
        if (!mask[static_cast<std::size_t>(i)]) continue;
        double product = 0.0;
        for (std::int64_t h = 0; h < c.hidden; ++h) {
          product += double{x[static_cast<std::size_t>(t * c.hidden + h)]} *
                     up[static_cast<std::size_t>(i * c.hidden + h)];
        }
        const double gate = gates[static_cast<std::size_t>(t * size + i)];
        product *= gate / (1.0 + std::exp(-gate));
        for (std::int64_t h = 0; h < c.hidden; ++h) {
          out[static_cast<std::size_t>(t * c.hidden + h)] +=
              product * down[static_cast<std::size_t>(h * size + i)];
        }
      }
    }
    return out;
  }

  void expect_masked_dense(const Case& c, bool shifted = false) {
    const Result result = decode(c, shifted);
    const Result selected = selected_by_forward(c);
    EXPECT_EQ(result.channels, selected.channels);
    EXPECT_TRUE(test::same_bits(result.gate, selected.gate));
    test::expect_close(result.out, masked_dense(c, selected.channels),
                       in_bf16() ? 1e-2 : tolerance(1e-5), "out");
    const std::set<std::uint16_t> different(selected.channels.begin(), selected.channels.end());
    EXPECT_EQ(result.rows_read, static_cast<std::int64_t>(different.size()));
  }
};

TEST_P(MocDecodeTest, EqualsTheMaskedDenseFormula) {
  for (std::int64_t tokens = 1; tokens <= kMaxMocDecodeTokens; ++tokens)
    expect_masked_dense(random_case(tokens, 64, shape_of(96, 20)));
  expect_masked_dense(random_case(1, 512, shape_of(1376, 256)));
  expect_masked_dense(random_case(3, 256, shape_of(300, 60)));
}

TEST_P(MocDecodeTest, TakesAnySize) {
  for (const std::int64_t tokens : {1, 2, 5}) {
    expect_masked_dense(random_case(tokens, 1, shape_of(1, 1)));
    expect_masked_dense(random_case(tokens, 17, shape_of(37, 1)));
    expect_masked_dense(random_case(tokens, 61, shape_of(53, 53)));
    expect_masked_dense(random_case(tokens, 333, shape_of(129, 40)));
    expect_masked_dense(random_case(tokens, 40, of_eight(64)));
    expect_masked_dense(random_case(tokens, 70, of_eight(61)));
    expect_masked_dense(random_case(tokens, 9, of_eight(9)));
    expect_masked_dense(random_case(tokens, 64, shape_of(48, 12)), true);
  }
  Case by_magnitude = random_case(4, 32, shape_of(50, 20));
  by_magnitude.shape.score = MocScore::silu_magnitude;
  expect_masked_dense(by_magnitude);
}

TEST_P(MocDecodeTest, EqualGatesKeepTheLowerChannels) {
  Case c = random_case(3, 32, shape_of(80, 30));
  for (float& gate : c.gates) gate = std::round(gate);
  expect_masked_dense(c);
  std::fill(c.gates.begin(), c.gates.end(), 0.5f);
  expect_masked_dense(c);
  EXPECT_EQ(decode(c).rows_read, 30);
}

TEST_P(MocDecodeTest, TokensShareChannelsOrDoNot) {
  Case c = random_case(4, 48, shape_of(64, 16));
  const auto prefer = [&](const std::function<bool(std::int64_t, std::int64_t)>& wanted) {
    for (std::int64_t t = 0; t < 4; ++t) {
      for (std::int64_t i = 0; i < 64; ++i) {
        float& gate = c.gates[static_cast<std::size_t>(t * 64 + i)];
        gate = std::abs(gate) * (wanted(t, i) ? 1.0f : -1.0f) + (wanted(t, i) ? 0.1f : 0.0f);
      }
    }
  };
  prefer([](std::int64_t, std::int64_t i) { return i % 4 == 1; });
  expect_masked_dense(c);
  EXPECT_EQ(decode(c).rows_read, 16);
  prefer([](std::int64_t t, std::int64_t i) { return i % 4 == t; });
  expect_masked_dense(c);
  EXPECT_EQ(decode(c).rows_read, 64);
}

// Not a number in what was not selected is not seen.
TEST_P(MocDecodeTest, OtherRowsAreNotUsed) {
  Case c = random_case(2, 40, shape_of(60, 9));
  const Result clean = decode(c);
  const std::set<std::uint16_t> selected(clean.channels.begin(), clean.channels.end());
  for (std::int64_t i = 0; i < 60; ++i) {
    if (selected.count(static_cast<std::uint16_t>(i)) != 0) continue;
    for (std::int64_t h = 0; h < 40; ++h) {
      c.up[static_cast<std::size_t>(i * 40 + h)] = std::numeric_limits<float>::quiet_NaN();
      c.down[static_cast<std::size_t>(h * 60 + i)] = std::numeric_limits<float>::infinity();
    }
  }
  EXPECT_TRUE(test::same_bits(decode(c).out, clean.out));
}

// Rows of a page of memory each: who reads one that is not selected is ended by the system.
TEST_P(MocDecodeTest, OtherRowsAreNotRead) {
  if (!on_cpu()) GTEST_SKIP() << "pages are the CPU's memory";
  const auto hidden = static_cast<std::int64_t>(PageRows::kPageBytes / sizeof(float));
  const std::int64_t size = 60;
  const Case c = random_case(3, hidden, shape_of(size, 9));
  const Result expected = decode(c);
  const std::set<std::uint16_t> selected(expected.channels.begin(), expected.channels.end());
  const PageRows up(size);
  const PageRows down(size);
  for (const std::uint16_t i : selected) {
    std::copy_n(c.up.begin() + i * hidden, hidden, up.row(i));
    for (std::int64_t h = 0; h < hidden; ++h)
      down.row(i)[h] = c.down[static_cast<std::size_t>(h * size + i)];
  }
  for (std::int64_t i = 0; i < size; ++i) {
    if (selected.count(static_cast<std::uint16_t>(i)) != 0) continue;
    up.forbid(i);
    down.forbid(i);
  }
  const MocSelection selection{poisoned_activations({3, 9}), zeros({3, 18}, DType::u8)};
  const Tensor out = poisoned_activations({3, hidden});
  moc_decode(c.shape, activations({3, hidden}, c.x), activations({3, size}, c.gates),
             {Tensor(device(), DType::f32, {size, hidden}, up.row(0)),
              Tensor(device(), DType::f32, {size, hidden}, down.row(0))},
             selection, out);
  EXPECT_TRUE(test::same_bits(values(out), expected.out));
}

// A channel that is not a number in one token's selection does not reach the other tokens.
TEST_P(MocDecodeTest, TokensAreIndependent) {
  const Case c = random_case(5, 200, shape_of(96, 20));
  const Values together = decode(c).out;
  for (std::int64_t t = 0; t < 5; ++t) {
    Case alone = c;
    alone.tokens = 1;
    alone.x.assign(c.x.begin() + t * 200, c.x.begin() + (t + 1) * 200);
    alone.gates.assign(c.gates.begin() + t * 96, c.gates.begin() + (t + 1) * 96);
    const Values expected(together.begin() + t * 200, together.begin() + (t + 1) * 200);
    const Values out = decode(alone).out;
    if (on_cpu()) {
      EXPECT_TRUE(test::same_bits(out, expected)) << t;
    } else {
      test::expect_close(out, test::widen(expected), tolerance(1e-6), "out");
    }
  }
}

TEST_P(MocDecodeTest, NotANumberIsSelectedAndSeen) {
  Case c = random_case(2, 32, shape_of(40, 5));
  c.gates[7] = std::numeric_limits<float>::quiet_NaN();
  const Result result = decode(c);
  const auto end = result.channels.begin() + 5;
  EXPECT_NE(std::find(result.channels.begin(), end, 7), end);
  EXPECT_EQ(result.channels, selected_by_forward(c).channels);
  for (std::size_t h = 0; h < 32; ++h) {
    EXPECT_TRUE(std::isnan(result.out[h]));
    EXPECT_FALSE(std::isnan(result.out[32 + h]));
  }
}

TEST_P(MocDecodeTest, AllChannelsAreTheDenseFfn) {
  const Case c = random_case(2, 64, shape_of(48, 48));
  const Tensor gate_up = poisoned_activations({2, 96});
  const Tensor x = activations({2, 64}, c.x);
  Values weights = test::random_values(48 * 64, 9);
  weights.insert(weights.end(), c.up.begin(), c.up.end());
  linear_forward(x, activations({96, 64}, weights), gate_up);
  const Tensor product = poisoned_activations({2, 48});
  const Tensor dense = poisoned_activations({2, 64});
  const Tensor down = activations({64, 48}, c.down);
  swiglu_forward(gate_up, product);
  linear_forward(product, down, dense);
  Case same = c;
  const Values both = values(gate_up);
  for (std::size_t t = 0; t < 2; ++t) {
    std::copy_n(both.begin() + static_cast<std::ptrdiff_t>(t * 96), 48,
                same.gates.begin() + static_cast<std::ptrdiff_t>(t * 48));
  }
  test::expect_close(decode(same).out, test::widen(values(dense)), in_bf16() ? 2e-2 : 1e-5, "out");
}

TEST_P(MocDecodeTest, TheNumberOfThreadsChangesNoBit) {
  if (!on_cpu()) GTEST_SKIP() << "threads are the CPU's";
  for (const std::int64_t tokens : {1, 4}) {
    expect_same_for_any_threads(
        // Enough gates, too, for several threads to select.
        [&] { return decode(random_case(tokens, 130, shape_of(4500, 1000))).out; });
  }
}

TEST_P(MocDecodeTest, RepeatsBitByBit) {
  const Case c = random_case(6, 200, shape_of(300, 60));
  EXPECT_TRUE(test::same_bits(decode(c).out, decode(c).out));
}

TEST_P(MocDecodeTest, AllocatesNothingAfterItsFirstCall) {
  const MocShape shape = shape_of(96, 20);
  const Case c = random_case(3, 64, shape);
  const Tensor x = activations({3, 64}, c.x);
  const Tensor gates = activations({3, 96}, c.gates);
  const MocDecodeWeights weights{activations({96, 64}, c.up), activations({96, 64}, c.up)};
  const MocSelection selection{poisoned_activations({3, 20}), zeros({3, 40}, DType::u8)};
  const Tensor out = poisoned_activations({3, 64});
  moc_decode(shape, x, gates, weights, selection, out);
  const std::int64_t allocations = device().num_allocations();
  moc_decode(shape, x, gates, weights, selection, out);
  EXPECT_EQ(device().num_allocations(), allocations);
}

TEST_P(MocDecodeTest, TransposesMatricesOfAnySize) {
  for (const auto& [rows, cols] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {1, 70}, {33, 1}, {32, 32}, {65, 31}, {100, 257}}) {
    const Values matrix = as_held(test::random_values(rows * cols, 5));
    const Values result = values(transposed(activations({rows, cols}, matrix)));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(result[static_cast<std::size_t>(c * rows + r)],
                  matrix[static_cast<std::size_t>(r * cols + c)])
            << rows << " x " << cols;
      }
    }
  }
}

TEST_P(MocDecodeTest, TransposesBf16) {
  const Tensor from = zeros({3, 5}, DType::bf16);
  const Tensor to = zeros({5, 3}, DType::bf16);
  std::vector<std::uint16_t> numbers(15);
  for (std::size_t i = 0; i < 15; ++i) numbers[i] = static_cast<std::uint16_t>(0x3f80 + i);
  copy_from_host(numbers.data(), from);
  transpose(from, to);
  std::vector<std::uint16_t> result(15);
  copy_to_host(to, result.data());
  for (std::size_t i = 0; i < 15; ++i) EXPECT_EQ(result[i % 5 * 3 + i / 5], numbers[i]) << i;
}

TEST_P(MocDecodeTest, RefusesWhatDoesNotFit) {
  const MocShape shape = shape_of(16, 4);
  const auto call = [&](std::int64_t tokens, std::int64_t selected, std::int64_t keep,
                        std::int64_t channels, std::int64_t width) {
    MocShape given = shape;
    given.keep = keep;
    moc_decode(given, poisoned_activations({tokens, 8}), poisoned_activations({tokens, channels}),
               {poisoned_activations({16, 8}), poisoned_activations({16, width})},
               {poisoned_activations({selected, 4}), zeros({selected, 8}, DType::u8)},
               poisoned_activations({tokens, 8}));
  };
  EXPECT_NO_THROW(call(2, 2, 4, 16, 8));
  EXPECT_THROW(call(kMaxMocDecodeTokens + 1, kMaxMocDecodeTokens + 1, 4, 16, 8),
               std::invalid_argument);
  EXPECT_THROW(call(2, 3, 4, 16, 8), std::invalid_argument);
  EXPECT_THROW(call(2, 2, 5, 16, 8), std::invalid_argument);
  EXPECT_THROW(call(2, 2, 0, 16, 8), std::invalid_argument);
  EXPECT_THROW(call(2, 2, 4, 17, 8), std::invalid_argument);
  EXPECT_THROW(call(2, 2, 4, 16, 9), std::invalid_argument);
  EXPECT_THROW(transpose(poisoned_activations({2, 3}), poisoned_activations({2, 3})),
               std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(MocDecodeTest);

}  // namespace
}  // namespace chaski
