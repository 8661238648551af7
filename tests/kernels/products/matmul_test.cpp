#include "kernels/products/matmul.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;

constexpr Transpose kTransposes[] = {Transpose::no, Transpose::yes};

struct Sizes {
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
};

// A block of columns in the middle of a wider tensor.
struct Block {
  Values values;
  Matrix matrix;

  double at(std::int64_t row, std::int64_t col) const {
    return values[static_cast<std::size_t>(matrix.offset + row * matrix.stride + col)];
  }
};

class MatmulTest : public test::OpTest {
 protected:
  // [rows, cols] with `before` columns to the left and `after` to the right.
  Block block(std::int64_t rows, std::int64_t cols, unsigned seed, std::int64_t before,
              std::int64_t after) {
    const std::int64_t stride = before + cols + after;
    const Values values = test::random_values(rows * stride, seed);
    return {values, Matrix(tensor({rows, stride}, values)).columns(before, cols)};
  }

  void expect_product(Sizes sizes, Transpose transpose_a, Transpose transpose_b,
                      Accumulate accumulate, std::int64_t border) {
    const bool ta = transpose_a == Transpose::yes;
    const bool tb = transpose_b == Transpose::yes;
    SCOPED_TRACE(std::to_string(sizes.m) + " " + std::to_string(sizes.n) + " " +
                 std::to_string(sizes.k) + (ta ? " a transposed" : "") +
                 (tb ? " b transposed" : "") +
                 (accumulate == Accumulate::yes ? " accumulated" : "") + " border " +
                 std::to_string(border));
    const Block a = block(ta ? sizes.k : sizes.m, ta ? sizes.m : sizes.k, 1, border, 2 * border);
    const Block b = block(tb ? sizes.n : sizes.k, tb ? sizes.k : sizes.n, 2, border, 0);
    const Block out = block(sizes.m, sizes.n, 3, 0, border);
    matmul(a.matrix, transpose_a, b.matrix, transpose_b, out.matrix, accumulate);
    // What lies between the rows must stay.
    Reference expected = test::widen(out.values);
    for (std::int64_t row = 0; row < sizes.m; ++row) {
      for (std::int64_t col = 0; col < sizes.n; ++col) {
        double sum = accumulate == Accumulate::yes ? out.at(row, col) : 0.0;
        for (std::int64_t i = 0; i < sizes.k; ++i)
          sum += (ta ? a.at(i, row) : a.at(row, i)) * (tb ? b.at(col, i) : b.at(i, col));
        expected[static_cast<std::size_t>(out.matrix.offset + row * out.matrix.stride + col)] = sum;
      }
    }
    test::expect_close(values(out.matrix.tensor), expected, 2e-6, "out");
  }

  void expect_all_orders(Sizes sizes, std::int64_t border) {
    for (const Transpose transpose_a : kTransposes) {
      for (const Transpose transpose_b : kTransposes) {
        for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes})
          expect_product(sizes, transpose_a, transpose_b, accumulate, border);
      }
    }
  }
};

TEST_P(MatmulTest, MatchesThePlainProduct) {
  for (const Sizes sizes : {Sizes{2, 2, 2},
                            {3, 5, 7},
                            {64, 48, 32},
                            {65, 130, 33},
                            {17, 200, 1},
                            {2, 1, 300},
                            {50, 1, 1},
                            {128, 128, 128}})
    expect_all_orders(sizes, 0);
}

TEST_P(MatmulTest, TakesBlocksOfColumns) {
  for (const Sizes sizes : {Sizes{3, 5, 7}, {64, 48, 32}, {33, 65, 31}, {2, 1, 40}})
    expect_all_orders(sizes, 5);
}

TEST_P(MatmulTest, OneRow) {
  for (const Sizes sizes :
       {Sizes{1, 1, 1}, {1, 3, 2}, {1, 4, 16}, {1, 129, 63}, {1, 300, 200}, {1, 1000, 65}}) {
    expect_all_orders(sizes, 0);
    expect_all_orders(sizes, 3);
  }
}

TEST_P(MatmulTest, FewRows) {
  for (std::int64_t m = 2; m <= 17; ++m) {
    for (const Sizes sizes : {Sizes{m, 1, 1}, {m, 3, 15}, {m, 6, 16}, {m, 37, 130}})
      expect_all_orders(sizes, m % 3);
  }
}

TEST_P(MatmulTest, RowsOfAFewHaveNoPartInEachOther) {
  if (!on_cpu()) GTEST_SKIP() << "a promise of the CPU's products";
  constexpr std::int64_t kMost = 16, kIn = 75, kOut = 23;
  const Values x = test::random_values(kMost * kIn, 1);
  const Values weight = test::random_values(kOut * kIn, 2);
  const auto product = [&](std::int64_t first, std::int64_t count) {
    const Tensor y = poisoned_activations({count, kOut});
    linear_forward(tensor({kMost, kIn}, x).rows(first, count), tensor({kOut, kIn}, weight), y);
    return values(y);
  };
  const Values all = product(0, kMost);
  for (std::int64_t count = 2; count < kMost; ++count) {
    const std::int64_t first = kMost - count;
    EXPECT_TRUE(
        test::same_bits(product(first, count), Values(all.begin() + first * kOut, all.end())))
        << count << " rows";
  }
  expect_same_for_any_threads([&] { return product(3, 9); });
}

TEST_P(MatmulTest, EmptyProducts) {
  const Tensor out = tensor({2, 3}, {1, 2, 3, 4, 5, 6});
  Matrix a = tensor({2, 4}, Values(8, 1.0f));
  Matrix b = tensor({4, 3}, Values(12, 1.0f));
  a.cols = 0;
  b.rows = 0;
  matmul(a, Transpose::no, b, Transpose::no, out, Accumulate::yes);
  EXPECT_EQ(values(out), Values({1, 2, 3, 4, 5, 6}));
  matmul(a, Transpose::no, b, Transpose::no, out);
  EXPECT_EQ(values(out), Values(6, 0.0f));
}

TEST_P(MatmulTest, LinearLayerAndItsGradients) {
  constexpr std::int64_t kTokens = 9;
  constexpr std::int64_t kIn = 6;
  constexpr std::int64_t kOut = 11;
  const Values x = test::random_values(kTokens * kIn, 1);
  const Values weight = test::random_values(kOut * kIn, 2);
  const Values dy = test::random_values(kTokens * kOut, 3);
  const Values initial = test::random_values(kOut * kIn, 4);
  const Tensor y = zeros({kTokens, kOut});
  const Tensor dx = zeros({kTokens, kIn});
  const Tensor dweight = tensor({kOut, kIn}, initial);
  linear_forward(tensor({kTokens, kIn}, x), tensor({kOut, kIn}, weight), y);
  linear_backward_input(tensor({kTokens, kOut}, dy), tensor({kOut, kIn}, weight), dx);
  linear_backward_weight(tensor({kTokens, kOut}, dy), tensor({kTokens, kIn}, x), dweight);

  Reference expected_y(kTokens * kOut);
  Reference expected_dx(kTokens * kIn);
  Reference expected_dweight = test::widen(initial);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t o = 0; o < kOut; ++o) {
      for (std::int64_t i = 0; i < kIn; ++i) {
        const double w = weight[o * kIn + i];
        const double dy_value = dy[t * kOut + o];
        expected_y[t * kOut + o] += x[t * kIn + i] * w;
        expected_dx[t * kIn + i] += dy_value * w;
        expected_dweight[o * kIn + i] += dy_value * x[t * kIn + i];
      }
    }
  }
  test::expect_close(values(y), expected_y, 1e-6, "y");
  test::expect_close(values(dx), expected_dx, 1e-6, "dx");
  test::expect_close(values(dweight), expected_dweight, 1e-6, "dweight");
  linear_backward_input(tensor({kTokens, kOut}, dy), tensor({kOut, kIn}, weight), dx,
                        Accumulate::yes);
  for (double& value : expected_dx) value *= 2.0;
  test::expect_close(values(dx), expected_dx, 1e-6, "dx twice");
}

TEST_P(MatmulTest, AllocatesDeviceMemoryOnlyInTheFirstCall) {
  const Tensor a = tensor({200, 300}, test::random_values(200 * 300, 1));
  const Tensor b = tensor({200, 100}, test::random_values(200 * 100, 2));
  const Tensor out = zeros({300, 100});
  const auto call = [&] {
    matmul(a, Transpose::yes, b, Transpose::no, out, Accumulate::yes);
    matmul(a.rows(0, 1), Transpose::no, a, Transpose::yes, out.view({150, 200}).rows(0, 1));
  };
  call();
  const std::int64_t allocations = device().num_allocations();
  for (int i = 0; i < 3; ++i) call();
  EXPECT_EQ(device().num_allocations(), allocations);
}

TEST_P(MatmulTest, SameBitsTwiceAndOneRowForAnyNumberOfThreads) {
  const Values a = test::random_values(300 * 200, 1);
  const Values b = test::random_values(300 * 200, 2);
  const auto product = [&] {
    const Tensor out = zeros({200, 200});
    matmul(tensor({300, 200}, a), Transpose::yes, tensor({300, 200}, b), Transpose::no, out);
    return values(out);
  };
  EXPECT_TRUE(test::same_bits(product(), product()));
  for (const Transpose transpose : kTransposes) {
    const std::int64_t k = transpose == Transpose::yes ? 200 : 300;
    expect_same_for_any_threads([&] {
      const Tensor out = zeros({1, 500 - k});
      matmul(tensor({300, 200}, a).view({1, 60000}).view({60000 / k, k}).rows(0, 1), Transpose::no,
             tensor({300, 200}, b), transpose, out);
      return values(out);
    });
  }
}

TEST_P(MatmulTest, RefusesWhatDoesNotFit) {
  const Tensor a = zeros({2, 3});
  const Tensor out = zeros({2, 4});
  EXPECT_THROW(matmul(a, Transpose::no, zeros({4, 3}), Transpose::no, out), std::invalid_argument);
  EXPECT_THROW(matmul(a, Transpose::yes, zeros({3, 4}), Transpose::no, out), std::invalid_argument);
  EXPECT_THROW(matmul(a, Transpose::no, zeros({3, 5}), Transpose::no, out), std::invalid_argument);
  Matrix outside = a;
  outside.offset = 1;
  EXPECT_THROW(matmul(outside, Transpose::no, zeros({3, 4}), Transpose::no, out),
               std::invalid_argument);
  EXPECT_THROW(Matrix(a).columns(2, 2), std::invalid_argument);
}

TEST_P(MatmulTest, NamesTheLibrary) {
  EXPECT_EQ(std::string(gemm_library()).find("oneDNN "), 0u) << gemm_library();
}

CHASKI_ON_ALL_DEVICES(MatmulTest);

}  // namespace
}  // namespace chaski
