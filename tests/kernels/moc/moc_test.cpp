#include "kernels/moc/moc.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "kernels/layers/swiglu.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::TestBackend;
using test::Values;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double silu(double x) {
  return x / (1.0 + std::exp(-x));
}

// The kept channels of a row by a full stable sort.
std::vector<int> expected_channels(const MocShape& shape, const float* gates) {
  const auto score = [&](int i) {
    const double gate = gates[i];
    return shape.score == MocScore::gate ? gate : std::abs(silu(gate));
  };
  std::vector<int> kept;
  const int size = static_cast<int>(shape.intermediate_size);
  const int group = shape.pattern == MocPattern::topk ? size : 8;
  for (int begin = 0; begin < size; begin += group) {
    std::vector<int> order(static_cast<std::size_t>(std::min(group, size - begin)));
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score(a) > score(b); });
    const std::size_t count =
        shape.pattern == MocPattern::topk ? static_cast<std::size_t>(shape.keep) : 2;
    kept.insert(kept.end(), order.begin(),
                order.begin() + static_cast<std::ptrdiff_t>(std::min(count, order.size())));
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

MocShape shape_of(std::int64_t size, std::int64_t keep, MocIndex index = MocIndex::uint16) {
  return {size, keep, MocPattern::topk, MocScore::gate, index};
}

MocShape of_eight(std::int64_t size, MocIndex index = MocIndex::uint16) {
  return {size, MocShape::kept_of_eight(size), MocPattern::two_of_eight, MocScore::gate, index};
}

class MocTest : public test::OpTest {
 protected:
  MocKept allocate(const MocShape& shape, std::int64_t rows, bool stores_all = true) {
    const auto poisoned = [&] { return poisoned_activations({rows, shape.keep}); };
    MocKept kept;
    kept.gate = poisoned();
    kept.up = poisoned();
    if (stores_all) {
      kept.silu = poisoned();
      kept.product = poisoned();
    }
    kept.index = zeros({rows, shape.index_bytes()}, DType::u8);
    const std::vector<std::uint8_t> poison(static_cast<std::size_t>(rows * shape.index_bytes()),
                                           0xa5);
    copy_from_host(poison.data(), kept.index);
    return kept;
  }

  std::vector<int> channels(const MocShape& shape, const MocKept& kept, std::int64_t row) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(kept.index.num_elements()));
    copy_to_host(kept.index, bytes.data());
    const std::uint8_t* mine = bytes.data() + row * shape.index_bytes();
    std::vector<int> result;
    if (shape.index == MocIndex::uint16) {
      for (std::int64_t k = 0; k < shape.keep; ++k) {
        result.push_back(mine[2 * k] | mine[2 * k + 1] << 8);
      }
    } else {
      for (int i = 0; i < shape.intermediate_size; ++i) {
        if (mine[i / 8] >> (i % 8) & 1) result.push_back(i);
      }
    }
    return result;
  }

  // Forward and backward of random numbers against the masked dense formula in double.
  void expect_masked_dense(const MocShape& shape, std::int64_t rows, bool stores_all) {
    const std::int64_t size = shape.intermediate_size;
    const Values gate_up = as_held(test::random_values(rows * 2 * size, 5, 3.0f));
    const Values dactivation = as_held(test::random_values(rows * size, 6));
    const MocKept kept = allocate(shape, rows, stores_all);
    const Tensor activation = poisoned_activations({rows, size});
    moc_forward(shape, activations({rows, 2 * size}, gate_up), kept, activation);
    const Tensor both = activations({rows, size}, dactivation);
    const Tensor dgate_up = poisoned_activations({rows, 2 * size});
    moc_backward(shape, kept, both, dgate_up, both);
    Reference expected(static_cast<std::size_t>(rows * size), 0.0);
    Reference dexpected(static_cast<std::size_t>(rows * 2 * size), 0.0);
    Values kept_gates;
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* gates = gate_up.data() + row * 2 * size;
      const std::vector<int> wanted = expected_channels(shape, gates);
      ASSERT_EQ(channels(shape, kept, row), wanted) << "row " << row;
      for (const int i : wanted) {
        const double g = gates[i];
        const double u = gates[size + i];
        const double d = dactivation[static_cast<std::size_t>(row * size + i)];
        const double sigmoid = 1.0 / (1.0 + std::exp(-g));
        expected[static_cast<std::size_t>(row * size + i)] = silu(g) * u;
        dexpected[static_cast<std::size_t>(row * 2 * size + i)] =
            d * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
        dexpected[static_cast<std::size_t>(row * 2 * size + size + i)] = d * silu(g);
        kept_gates.push_back(gates[i]);
      }
    }
    test::expect_close(values(activation), expected, tolerance(1e-6), "activation");
    test::expect_close(values(both), expected, tolerance(1e-6), "activation again");
    test::expect_close(values(dgate_up), dexpected, tolerance(1e-6), "dgate_up");
    EXPECT_TRUE(test::same_bits(values(both), values(activation)));
    EXPECT_EQ(values(kept.gate), kept_gates);
    // Zeros are exact.
    const Values result = values(activation);
    const Values dresult = values(dgate_up);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(expected[i] != 0.0 || result[i] == 0.0f) << i;
    }
    for (std::size_t i = 0; i < dexpected.size(); ++i) {
      EXPECT_TRUE(dexpected[i] != 0.0 || dresult[i] == 0.0f) << i;
    }
  }

  std::vector<int> select(const MocShape& shape, const Values& gates) {
    Values gate_up = gates;
    gate_up.resize(2 * gates.size(), 1.0f);
    const MocKept kept = allocate(shape, 1);
    moc_forward(shape, activations({1, static_cast<std::int64_t>(gate_up.size())}, gate_up), kept,
                poisoned_activations({1, shape.intermediate_size}));
    return channels(shape, kept, 0);
  }
};

TEST_P(MocTest, EqualsTheMaskedDenseFormula) {
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    for (const bool stores_all : {true, false}) {
      expect_masked_dense(shape_of(16, 4, index), 3, stores_all);
      expect_masked_dense(shape_of(1, 1, index), 2, stores_all);
      expect_masked_dense(shape_of(37, 36, index), 2, stores_all);
      expect_masked_dense(shape_of(1376, 256, index), 2, stores_all);
      expect_masked_dense(of_eight(64, index), 3, stores_all);
      expect_masked_dense(of_eight(61, index), 3, stores_all);
      expect_masked_dense(of_eight(9, index), 2, stores_all);
    }
  }
  MocShape shape = shape_of(50, 20);
  shape.score = MocScore::silu_magnitude;
  expect_masked_dense(shape, 4, true);
}

TEST_P(MocTest, TakesAsManyChannelsAsThereCanBe) {
  constexpr std::int64_t kMost = MocShape::kMaxChannels;
  if (!on_cpu()) {
    // A token's would not fit into the shared memory of any GPU.
    try {
      select(shape_of(kMost, 1), Values(static_cast<std::size_t>(kMost)));
      FAIL() << "not refused";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find("moc_forward needs 262140 bytes of shared memory"),
                std::string::npos)
          << error.what();
    }
    return;
  }
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    for (const std::int64_t keep : {std::int64_t{1}, std::int64_t{4096}, kMost - 1, kMost})
      expect_masked_dense(shape_of(kMost, keep, index), 1, true);
    expect_masked_dense(of_eight(kMost, index), 1, true);
    // All alike.
    const std::vector<int> kept =
        select(shape_of(kMost, kMost - 1, index), Values(static_cast<std::size_t>(kMost), -0.5f));
    EXPECT_EQ(kept.size(), static_cast<std::size_t>(kMost - 1));
    EXPECT_EQ(kept.back(), static_cast<int>(kMost - 2));
  }
}

TEST_P(MocTest, AllChannelsAreTheDenseFfn) {
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kSize = 43;
  const Tensor gate_up =
      activations({kRows, 2 * kSize}, test::random_values(kRows * 2 * kSize, 1, 4.0f));
  const Tensor dactivation = activations({kRows, kSize}, test::random_values(kRows * kSize, 2));
  const Tensor dense = poisoned_activations({kRows, kSize});
  const Tensor dense_gradient = poisoned_activations({kRows, 2 * kSize});
  swiglu_forward(gate_up, dense);
  swiglu_backward(gate_up, dactivation, dense_gradient, {});
  const MocShape shape = shape_of(kSize, kSize);
  // What is recomputed has the bits of what is not.
  for (const bool stores_all : {true, false}) {
    const MocKept kept = allocate(shape, kRows, stores_all);
    const Tensor activation = poisoned_activations({kRows, kSize});
    const Tensor gradient = poisoned_activations({kRows, 2 * kSize});
    moc_forward(shape, gate_up, kept, activation);
    moc_backward(shape, kept, dactivation, gradient, {});
    EXPECT_TRUE(test::same_bits(values(activation), values(dense)));
    if (in_bf16()) {
      test::expect_close(values(gradient), test::widen(values(dense_gradient)), 1e-2, "gradient");
    } else {
      EXPECT_TRUE(test::same_bits(values(gradient), values(dense_gradient)));
    }
  }
}

TEST_P(MocTest, StoredAndRecomputedHaveTheSameBits) {
  const MocShape shape = shape_of(96, 20, MocIndex::bitmap);
  constexpr std::int64_t kRows = 7;
  const Tensor gate_up = activations({kRows, 192}, test::random_values(kRows * 192, 3, 3.0f));
  const Tensor dactivation = activations({kRows, 96}, test::random_values(kRows * 96, 4));
  std::vector<Values> gradients;
  for (const bool stores_all : {true, false}) {
    const MocKept kept = allocate(shape, kRows, stores_all);
    const Tensor activation = poisoned_activations({kRows, 96});
    const Tensor again = poisoned_activations({kRows, 96});
    const Tensor gradient = poisoned_activations({kRows, 192});
    moc_forward(shape, gate_up, kept, activation);
    moc_backward(shape, kept, dactivation, gradient, again);
    gradients.push_back(values(gradient));
    EXPECT_TRUE(test::same_bits(values(again), values(activation)));
  }
  EXPECT_TRUE(test::same_bits(gradients[0], gradients[1]));
}

TEST_P(MocTest, EqualGatesKeepTheLowerChannels) {
  EXPECT_EQ(select(shape_of(10, 4), Values(10, 0.5f)), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(select(shape_of(6, 3), {1, 2, 1, 1, 3, 1}), (std::vector<int>{0, 1, 4}));
  EXPECT_EQ(select(shape_of(4, 2), {-0.0f, 0.0f, -0.0f, 0.0f}), (std::vector<int>{0, 1}));
  EXPECT_EQ(select(of_eight(8), Values(8, -1.0f)), (std::vector<int>{0, 1}));
  EXPECT_EQ(select(of_eight(11), {1, 1, 2, 2, 2, 1, 1, 1, 5, 5, 5}),
            (std::vector<int>{2, 3, 8, 9}));
}

TEST_P(MocTest, TakesNegativeAndInfiniteGates) {
  EXPECT_EQ(select(shape_of(5, 2), {-5, -1, -3, -2, -4}), (std::vector<int>{1, 3}));
  EXPECT_EQ(select(shape_of(5, 2), {-kInfinity, 1, kInfinity, 2, -7}), (std::vector<int>{2, 3}));
  EXPECT_EQ(select(shape_of(3, 2), {-kInfinity, -kInfinity, -kInfinity}), (std::vector<int>{0, 1}));
  // The smallest numbers are told apart.
  EXPECT_EQ(select(shape_of(4, 2), {1e-38f, 0, 2e-38f, -1e-38f}), (std::vector<int>{0, 2}));
}

TEST_P(MocTest, ManyTiesAreCountedRight) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Values gates = test::random_values(300, seed, 4.0f);
    for (float& gate : gates) gate = std::round(gate);
    const MocShape shape = shape_of(300, 1 + 13 * static_cast<std::int64_t>(seed));
    EXPECT_EQ(select(shape, gates), expected_channels(shape, gates.data())) << seed;
  }
}

// What processors make of inf - inf has a sign bit; so that it shows it must not be dropped.
TEST_P(MocTest, NotANumberIsKeptWhateverItsSign) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const float nan : {kNan, std::copysign(kNan, -1.0f)}) {
    EXPECT_EQ(select(shape_of(5, 2), {3, nan, 1, kInfinity, 2}), (std::vector<int>{1, 3}));
    EXPECT_EQ(select(of_eight(8), {5, 4, 3, 2, 1, 0, nan, -1}), (std::vector<int>{0, 6}));
  }
}

// dL/dgate_up by central differences of the function with the selection free to move, where no gate
// is near the threshold.
TEST_P(MocTest, BackwardMatchesFiniteDifferences) {
  const MocShape shape = shape_of(16, 4);
  constexpr std::int64_t kRows = 3;
  const auto margin = [&](const Values& gate_up) {
    double least = kInfinity;
    for (std::int64_t row = 0; row < kRows; ++row) {
      Values gates(gate_up.begin() + row * 32, gate_up.begin() + row * 32 + 16);
      std::sort(gates.rbegin(), gates.rend());
      least = std::min<double>(least, gates[3] - gates[4]);
    }
    return least;
  };
  unsigned seed = 1;
  Values gate_up = as_held(test::random_values(kRows * 32, seed, 2.0f));
  while (margin(gate_up) < 1e-2) gate_up = as_held(test::random_values(kRows * 32, ++seed, 2.0f));
  const Values dactivation = as_held(test::random_values(kRows * 16, 77));
  const Reference expected = test::central_differences(
      [&](const Reference& x) {
        double sum = 0.0;
        for (std::int64_t row = 0; row < kRows; ++row) {
          const Values gates(x.begin() + row * 32, x.begin() + row * 32 + 16);
          for (const int i : expected_channels(shape, gates.data())) {
            const auto at = static_cast<std::size_t>(row * 32 + i);
            sum += silu(x[at]) * x[at + 16] * dactivation[static_cast<std::size_t>(row * 16 + i)];
          }
        }
        return sum;
      },
      test::widen(gate_up));
  const MocKept kept = allocate(shape, kRows);
  const Tensor dgate_up = poisoned_activations({kRows, 32});
  moc_forward(shape, activations({kRows, 32}, gate_up), kept, poisoned_activations({kRows, 16}));
  moc_backward(shape, kept, activations({kRows, 16}, dactivation), dgate_up, {});
  test::expect_close(values(dgate_up), expected, tolerance(1e-5), "dgate_up");
}

TEST_P(MocTest, CountsSelections) {
  const MocShape shape = shape_of(9, 3, MocIndex::bitmap);
  const MocKept kept = allocate(shape, 2);
  const Tensor activation = poisoned_activations({2, 9});
  Values gate_up(36, 1.0f);
  const Values first = {1, -1, 2, 3, 0, 0, 0, 0, 0};
  const Values second = {-3, -1, -2, -3, -4, -5, -6, -7, -1};
  std::copy(first.begin(), first.end(), gate_up.begin());
  std::copy(second.begin(), second.end(), gate_up.begin() + 18);
  moc_forward(shape, activations({2, 18}, gate_up), kept, activation);
  const Tensor counts = integers(std::vector<std::int32_t>(9, 10));
  const Tensor positive = integers({-2, 7});  // 2^32 - 2, and seven times 2^32
  moc_count(shape, kept, counts, positive);
  std::vector<std::int32_t> result(9);
  copy_to_host(counts, result.data());
  EXPECT_EQ(result, (std::vector<std::int32_t>{11, 11, 12, 11, 10, 10, 10, 10, 11}));
  copy_to_host(positive, result.data());
  EXPECT_EQ(result[0], 1);
  EXPECT_EQ(result[1], 8);
}

TEST_P(MocTest, TheNumberOfThreadsChangesNoBit) {
  if (!on_cpu()) GTEST_SKIP() << "threads are the CPU's";
  expect_same_for_any_threads([&] {
    const MocShape shape = shape_of(700, 90);
    const MocKept kept = allocate(shape, 40);
    const Tensor activation = poisoned_activations({40, 700});
    const Tensor gradient = poisoned_activations({40, 1400});
    moc_forward(shape, tensor({40, 1400}, test::random_values(40 * 1400, 9)), kept, activation);
    moc_backward(shape, kept, tensor({40, 700}, test::random_values(40 * 700, 10)), gradient, {});
    return values(gradient);
  });
}

TEST(MocShapeTest, KeepsTwoOfEachEight) {
  EXPECT_EQ(MocShape::kept_of_eight(2736), 684);
  EXPECT_EQ(MocShape::kept_of_eight(5461), 1366 - 0);
  EXPECT_EQ(MocShape::kept_of_eight(5464), 1366);
  EXPECT_EQ(MocShape::kept_of_eight(1376), 344);
  EXPECT_EQ(MocShape::kept_of_eight(1), 1);
}

TEST(MocShapeTest, TheSmallerIndexIsChosen) {
  EXPECT_EQ(shape_of(2736, 512).index_bytes(), 1024);
  EXPECT_EQ(shape_of(2736, 512, MocIndex::bitmap).index_bytes(), 342);
  EXPECT_EQ(MocShape::smaller_index(2736, 512), MocIndex::bitmap);
  EXPECT_EQ(MocShape::smaller_index(2736, 100), MocIndex::uint16);
}

TEST_P(MocTest, RefusesWhatDoesNotFit) {
  const Tensor gate_up = zeros({2, 16}, in_bf16() ? DType::bf16 : DType::f32);
  const Tensor activation = poisoned_activations({2, 8});
  for (const std::int64_t keep : {0, 9, -1}) {
    MocShape shape = shape_of(8, 4);
    const MocKept kept = allocate(shape, 2);
    shape.keep = keep;
    EXPECT_THROW(moc_forward(shape, gate_up, kept, activation), std::invalid_argument) << keep;
  }
  const MocShape shape = shape_of(8, 4);
  EXPECT_THROW(moc_forward(shape, gate_up, allocate(shape, 3), activation), std::invalid_argument);
  EXPECT_THROW(moc_forward(shape, gate_up, allocate(shape_of(8, 3), 2), activation),
               std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(MocTest);

}  // namespace
}  // namespace chaski
