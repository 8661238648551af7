#include <algorithm>
#include <set>

#include "kernels/moc/products.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::TestBackend;
using test::Values;

MocShape shape_of(std::int64_t size, std::int64_t keep, MocIndex index) {
  return {size, keep, MocPattern::topk, MocScore::gate, index};
}

MocShape of_eight(std::int64_t size, MocIndex index) {
  return {size, MocShape::kept_of_eight(size), MocPattern::two_of_eight, MocScore::gate, index};
}

// The operands of one FFN on `tokens` tokens.
struct Ffn {
  std::int64_t tokens;
  std::int64_t hidden;
  MocShape shape;
  Values x, gates, dout, gate, up, down;

  std::int64_t size() const { return shape.intermediate_size; }
};

// With gates of any values: nothing here depends on where they come from. Of skewed ones the same
// few channels are the largest of nearly all tokens, and some are never kept.
Ffn make_ffn(std::int64_t tokens, std::int64_t hidden, const MocShape& shape, bool skewed = false) {
  const std::int64_t size = shape.intermediate_size;
  Ffn ffn{tokens,
          hidden,
          shape,
          test::random_values(tokens * hidden, 1),
          test::random_values(tokens * size, 2, 3.0f),
          test::random_values(tokens * hidden, 3),
          test::random_values(size * hidden, 4),
          test::random_values(size * hidden, 5),
          test::random_values(hidden * size, 6)};
  if (skewed) {
    const Values preference = test::random_values(size, 7, 20.0f);
    for (std::size_t i = 0; i < ffn.gates.size(); ++i)
      ffn.gates[i] += preference[i % preference.size()];
  }
  return ffn;
}

struct Results {
  Values out, dx, dgate, dup, ddown;
};

// The same by the dense formula with a mask, in double.
struct Expected {
  Reference up;  // [tokens, size], also of channels that are not kept
  Reference out, dx, dgate, dup, ddown;
};

Expected masked_dense(const Ffn& ffn, const std::vector<std::vector<int>>& channels) {
  const std::int64_t size = ffn.size();
  const std::int64_t hidden = ffn.hidden;
  const auto zeros = [](std::int64_t count) {
    return Reference(static_cast<std::size_t>(count), 0.0);
  };
  Expected e{zeros(ffn.tokens * size), zeros(ffn.tokens * hidden), zeros(ffn.tokens * hidden),
             zeros(size * hidden),     zeros(size * hidden),       zeros(size * hidden)};
  for (std::int64_t t = 0; t < ffn.tokens; ++t) {
    const float* x = ffn.x.data() + t * hidden;
    const float* dout = ffn.dout.data() + t * hidden;
    for (const int c : channels[static_cast<std::size_t>(t)]) {
      double up = 0.0;
      double dproduct = 0.0;
      for (std::int64_t h = 0; h < hidden; ++h) {
        up += double{x[h]} * ffn.up[static_cast<std::size_t>(c * hidden + h)];
        dproduct += double{dout[h]} * ffn.down[static_cast<std::size_t>(h * size + c)];
      }
      const double g = ffn.gates[static_cast<std::size_t>(t * size + c)];
      const double sigmoid = 1.0 / (1.0 + std::exp(-g));
      const double product = g * sigmoid * up;
      const double dgate = dproduct * up * sigmoid * (1.0 + g * (1.0 - sigmoid));
      const double dup = dproduct * g * sigmoid;
      e.up[static_cast<std::size_t>(t * size + c)] = up;
      for (std::int64_t h = 0; h < hidden; ++h) {
        const auto row = static_cast<std::size_t>(c * hidden + h);
        const auto column = static_cast<std::size_t>(h * size + c);
        const auto token = static_cast<std::size_t>(t * hidden + h);
        e.out[token] += product * ffn.down[column];
        e.dx[token] += dgate * ffn.gate[row] + dup * ffn.up[row];
        e.dgate[row] += dgate * x[h];
        e.dup[row] += dup * x[h];
        e.ddown[column] += product * dout[h];
      }
    }
  }
  return e;
}

class MocProductsTest : public test::OpTest {
 protected:
  void SetUp() override {
    OpTest::SetUp();
    if (!on_cpu()) GTEST_SKIP() << "on the CPU only";
  }

  MocKept allocate(const MocShape& shape, std::int64_t tokens, bool stores_all) {
    const auto poisoned = [&] { return poisoned_activations({tokens, shape.keep}); };
    MocKept kept;
    kept.gate = poisoned();
    kept.up = poisoned();
    if (stores_all) {
      kept.silu = poisoned();
      kept.product = poisoned();
    }
    kept.index = zeros({tokens, shape.index_bytes()}, DType::u8);
    return kept;
  }

  // What moc_forward keeps of these gates and an up projection of its own.
  MocKept kept_by_moc(const Ffn& ffn, const Reference& up) {
    const std::int64_t size = ffn.size();
    Values gate_up(static_cast<std::size_t>(ffn.tokens * 2 * size));
    for (std::int64_t t = 0; t < ffn.tokens; ++t) {
      for (std::int64_t c = 0; c < size; ++c) {
        gate_up[static_cast<std::size_t>(t * 2 * size + c)] =
            ffn.gates[static_cast<std::size_t>(t * size + c)];
        gate_up[static_cast<std::size_t>((t * 2 + 1) * size + c)] =
            static_cast<float>(up[static_cast<std::size_t>(t * size + c)]);
      }
    }
    const MocKept kept = allocate(ffn.shape, ffn.tokens, true);
    moc_forward(ffn.shape, tensor({ffn.tokens, 2 * size}, gate_up), kept,
                poisoned_activations({ffn.tokens, size}));
    return kept;
  }

  std::vector<std::vector<int>> channels(const Ffn& ffn, const MocKept& kept) {
    const std::int64_t bytes = ffn.shape.index_bytes();
    std::vector<std::vector<int>> result;
    for (std::int64_t t = 0; t < ffn.tokens; ++t) {
      const std::uint8_t* mine = kept.index.as<std::uint8_t>() + t * bytes;
      result.emplace_back();
      if (ffn.shape.index == MocIndex::uint16) {
        for (std::int64_t k = 0; k < ffn.shape.keep; ++k)
          result.back().push_back(mine[2 * k] | mine[2 * k + 1] << 8);
      } else {
        for (int c = 0; c < ffn.size(); ++c) {
          if (mine[c / 8] >> (c % 8) & 1) result.back().push_back(c);
        }
      }
    }
    return result;
  }

  MocWeights weights(const Ffn& ffn) {
    const std::int64_t size = ffn.size();
    return {tensor({size, ffn.hidden}, ffn.gate), tensor({size, ffn.hidden}, ffn.up),
            tensor({ffn.hidden, size}, ffn.down)};
  }

  // Gradients are added to ones.
  MocWeights ones(const Ffn& ffn) {
    const Values one(ffn.up.size(), 1.0f);
    const std::int64_t size = ffn.size();
    return {tensor({size, ffn.hidden}, one), tensor({size, ffn.hidden}, one),
            tensor({ffn.hidden, size}, one)};
  }

  // What ops find in their workspace is not a number.
  void poison_workspace() {
    Workspace::Frame frame(device());
    const Tensor poisoned = frame.f32({std::int64_t{1} << 21});
    std::fill_n(poisoned.f32(), poisoned.num_elements(), std::numeric_limits<float>::quiet_NaN());
  }

  Results run(const Ffn& ffn, const MocKept& kept) {
    poison_workspace();
    const Tensor x = tensor({ffn.tokens, ffn.hidden}, ffn.x);
    const Tensor out = poisoned_activations({ffn.tokens, ffn.hidden});
    const MocWeights w = weights(ffn);
    moc_products_forward(ffn.shape, x, tensor({ffn.tokens, ffn.size()}, ffn.gates), w, kept, out);
    const MocWeights gradients = ones(ffn);
    const Tensor dx = poisoned_activations({ffn.tokens, ffn.hidden});
    poison_workspace();
    moc_products_backward(ffn.shape, tensor({ffn.tokens, ffn.hidden}, ffn.dout), x, w, kept,
                          gradients, dx);
    return {values(out), values(dx), values(gradients.gate), values(gradients.up),
            values(gradients.down)};
  }

  void expect_masked_dense(const Ffn& ffn, bool stores_all = false) {
    SCOPED_TRACE(::testing::Message() << ffn.tokens << " tokens, hidden " << ffn.hidden << ", "
                                      << ffn.shape.keep << " of " << ffn.size()
                                      << (ffn.shape.index == MocIndex::bitmap ? ", bitmap" : ""));
    const MocKept kept = allocate(ffn.shape, ffn.tokens, stores_all);
    const Results results = run(ffn, kept);
    const auto selected = channels(ffn, kept);
    Expected expected = masked_dense(ffn, selected);
    test::expect_close(results.out, expected.out, 2e-6, "out");
    test::expect_close(results.dx, expected.dx, 2e-6, "dx");
    for (Reference* gradient : {&expected.dgate, &expected.dup, &expected.ddown}) {
      for (double& value : *gradient) value += 1.0;
    }
    test::expect_close(results.dgate, expected.dgate, 2e-6, "dgate");
    test::expect_close(results.dup, expected.dup, 2e-6, "dup");
    test::expect_close(results.ddown, expected.ddown, 2e-6, "ddown");

    const MocKept by_moc = kept_by_moc(ffn, expected.up);
    EXPECT_EQ(channels(ffn, by_moc), selected);
    EXPECT_TRUE(test::same_bits(values(kept.gate), values(by_moc.gate)));
    test::expect_close(values(kept.up), test::widen(values(by_moc.up)), 2e-6, "kept.up");
    if (!stores_all) return;
    EXPECT_TRUE(test::same_bits(values(kept.silu), values(by_moc.silu)));
    test::expect_close(values(kept.product), test::widen(values(by_moc.product)), 2e-6,
                       "kept.product");
  }
};

TEST_P(MocProductsTest, EqualsTheMaskedDenseFormula) {
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    expect_masked_dense(make_ffn(5, 16, shape_of(24, 5, index)), true);
    // More than one panel of channels, of tokens and of the hidden dimension, none of them full.
    expect_masked_dense(make_ffn(150, 145, shape_of(300, 50, index)), true);
    expect_masked_dense(make_ffn(67, 256, shape_of(257, 61, index)));
    // A panel exactly full, and one more.
    expect_masked_dense(make_ffn(64, 128, shape_of(64, 20, index)));
    expect_masked_dense(make_ffn(65, 129, shape_of(65, 20, index)));
    expect_masked_dense(make_ffn(9, 7, shape_of(1376, 256, index)));
    // Several pieces of tokens, of channels.
    expect_masked_dense(make_ffn(1100, 40, shape_of(130, 33, index)));
    expect_masked_dense(make_ffn(20, 40, shape_of(2100, 300, index)));
  }
}

TEST_P(MocProductsTest, TakesOneChannelAndAll) {
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    expect_masked_dense(make_ffn(70, 33, shape_of(130, 1, index)));
    expect_masked_dense(make_ffn(70, 33, shape_of(130, 130, index)));
    expect_masked_dense(make_ffn(3, 1, shape_of(1, 1, index)));
  }
}

TEST_P(MocProductsTest, TakesFewTokens) {
  for (const std::int64_t tokens : {1, 2, 15, 17}) {
    expect_masked_dense(make_ffn(tokens, 96, shape_of(200, 37, MocIndex::bitmap)), true);
  }
}

TEST_P(MocProductsTest, TakesTwoOfEachEight) {
  for (const MocIndex index : {MocIndex::uint16, MocIndex::bitmap}) {
    expect_masked_dense(make_ffn(80, 64, of_eight(256, index)), true);
    expect_masked_dense(make_ffn(33, 40, of_eight(205, index)));
    expect_masked_dense(make_ffn(33, 40, of_eight(201, index)));
  }
}

TEST_P(MocProductsTest, TakesSkewedSelections) {
  const Ffn ffn = make_ffn(140, 130, shape_of(520, 60, MocIndex::bitmap), true);
  expect_masked_dense(ffn);
  // They are: some channels are everybody's, most nobody's.
  const MocKept kept = allocate(ffn.shape, ffn.tokens, false);
  run(ffn, kept);
  std::vector<int> counts(520, 0);
  for (const std::vector<int>& row : channels(ffn, kept)) {
    for (const int c : row) ++counts[static_cast<std::size_t>(c)];
  }
  EXPECT_GT(std::count(counts.begin(), counts.end(), 140), 20);
  EXPECT_GT(std::count(counts.begin(), counts.end(), 0), 300);
}

TEST_P(MocProductsTest, SelectsAsMocDoesAmongEqualGates) {
  Ffn ffn = make_ffn(20, 32, shape_of(300, 100, MocIndex::bitmap));
  for (float& gate : ffn.gates) gate = std::round(gate);
  expect_masked_dense(ffn);
  ffn.shape.score = MocScore::silu_magnitude;
  expect_masked_dense(ffn);
}

// Rows of weights that nobody's gradient reaches keep their bits.
TEST_P(MocProductsTest, ChannelsThatNobodyKeepsHaveNoGradient) {
  const Ffn ffn = make_ffn(30, 24, shape_of(200, 10, MocIndex::uint16), true);
  const MocKept kept = allocate(ffn.shape, ffn.tokens, false);
  const Results results = run(ffn, kept);
  std::set<int> used;
  for (const std::vector<int>& row : channels(ffn, kept)) used.insert(row.begin(), row.end());
  ASSERT_LT(used.size(), 150u);
  for (int c = 0; c < 200; ++c) {
    if (used.count(c) != 0) continue;
    for (std::int64_t h = 0; h < 24; ++h) {
      EXPECT_EQ(results.dgate[static_cast<std::size_t>(c * 24 + h)], 1.0f);
      EXPECT_EQ(results.dup[static_cast<std::size_t>(c * 24 + h)], 1.0f);
      EXPECT_EQ(results.ddown[static_cast<std::size_t>(h * 200 + c)], 1.0f);
    }
  }
}

TEST_P(MocProductsTest, FrozenWeightsChangeNoOtherResult) {
  const Ffn ffn = make_ffn(70, 40, shape_of(150, 30, MocIndex::bitmap));
  const MocKept kept = allocate(ffn.shape, ffn.tokens, false);
  const Results all = run(ffn, kept);
  const Tensor x = tensor({70, 40}, ffn.x);
  const Tensor dout = tensor({70, 40}, ffn.dout);
  const MocWeights w = weights(ffn);
  for (int which = 0; which < 8; ++which) {
    MocWeights gradients = ones(ffn);
    if ((which & 1) == 0) gradients.gate = {};
    if ((which & 2) == 0) gradients.up = {};
    if ((which & 4) == 0) gradients.down = {};
    const Tensor dx = poisoned_activations({70, 40});
    moc_products_backward(ffn.shape, dout, (which & 3) == 0 ? Tensor() : x, w, kept, gradients, dx);
    EXPECT_TRUE(test::same_bits(values(dx), all.dx)) << which;
    EXPECT_TRUE(!gradients.gate || test::same_bits(values(gradients.gate), all.dgate)) << which;
    EXPECT_TRUE(!gradients.up || test::same_bits(values(gradients.up), all.dup)) << which;
    EXPECT_TRUE(!gradients.down || test::same_bits(values(gradients.down), all.ddown)) << which;
  }
  // The operand may become the result, and so may the gradient.
  for (const bool over_x : {true, false}) {
    const Tensor dx = over_x ? x : dout;
    const Tensor copy_of_x = tensor({70, 40}, ffn.x);
    const MocWeights gradients = ones(ffn);
    moc_products_backward(ffn.shape, dout, over_x ? x : copy_of_x, w, kept, gradients, dx);
    EXPECT_TRUE(test::same_bits(values(dx), all.dx));
    EXPECT_TRUE(test::same_bits(values(gradients.gate), all.dgate));
    EXPECT_TRUE(test::same_bits(values(gradients.down), all.ddown));
  }
}

TEST_P(MocProductsTest, TheNumberOfThreadsChangesNoBit) {
  expect_same_for_any_threads([&] {
    const Ffn ffn = make_ffn(700, 260, shape_of(700, 90, MocIndex::bitmap));
    const MocKept kept = allocate(ffn.shape, ffn.tokens, true);
    const Results results = run(ffn, kept);
    Values all = values(kept.product);
    for (const Values* part :
         {&results.out, &results.dx, &results.dgate, &results.dup, &results.ddown}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    return all;
  });
}

// What a token gets does not depend on which tokens come with it.
TEST_P(MocProductsTest, TheOtherTokensChangeNoBit) {
  const MocShape shape = shape_of(500, 70, MocIndex::uint16);
  const Ffn ffn = make_ffn(90, 200, shape);
  const Results all = run(ffn, allocate(shape, 90, false));
  for (const std::int64_t token : {0, 63, 64, 89}) {
    Ffn one = make_ffn(1, 200, shape);
    const auto row = [&](const Values& values, std::int64_t width) {
      return Values(values.begin() + token * width, values.begin() + (token + 1) * width);
    };
    one.x = row(ffn.x, 200);
    one.gates = row(ffn.gates, 500);
    one.dout = row(ffn.dout, 200);
    const Results result = run(one, allocate(shape, 1, false));
    EXPECT_TRUE(test::same_bits(result.out, row(all.out, 200))) << token;
    EXPECT_TRUE(test::same_bits(result.dx, row(all.dx, 200))) << token;
  }
}

TEST_P(MocProductsTest, WithoutAnOutputKeepsTheSame) {
  for (const bool stores_all : {false, true}) {
    const Ffn ffn = make_ffn(70, 40, shape_of(150, 30, MocIndex::bitmap));
    const Tensor x = tensor({70, 40}, ffn.x);
    const Tensor gates = tensor({70, 150}, ffn.gates);
    const MocWeights w = weights(ffn);
    const MocKept expected = allocate(ffn.shape, ffn.tokens, stores_all);
    moc_products_forward(ffn.shape, x, gates, w, expected, poisoned_activations({70, 40}));
    const MocKept kept = allocate(ffn.shape, ffn.tokens, stores_all);
    poison_workspace();
    moc_products_forward(ffn.shape, x, gates, w, kept, {});
    EXPECT_EQ(channels(ffn, kept), channels(ffn, expected));
    for (Tensor MocKept::*member :
         {&MocKept::gate, &MocKept::up, &MocKept::silu, &MocKept::product}) {
      if (!(expected.*member)) continue;
      EXPECT_TRUE(test::same_bits(values(kept.*member), values(expected.*member)));
    }
  }
}

TEST_P(MocProductsTest, AllocatesNothingAfterTheFirstCall) {
  const Ffn ffn = make_ffn(100, 40, shape_of(150, 30, MocIndex::bitmap));
  const MocKept kept = allocate(ffn.shape, ffn.tokens, false);
  const Tensor x = tensor({100, 40}, ffn.x);
  const Tensor gates = tensor({100, 150}, ffn.gates);
  const MocWeights w = weights(ffn);
  const Tensor out = poisoned_activations({100, 40});
  const auto step = [&] {
    moc_products_forward(ffn.shape, x, gates, w, kept, out);
    moc_products_backward(ffn.shape, out, x, w, kept, {}, out);
  };
  step();
  const std::int64_t allocations = device().num_allocations();
  step();
  EXPECT_EQ(device().num_allocations(), allocations);
}

TEST_P(MocProductsTest, PayOnlyWhereTheyDo) {
  const MocShape shape = shape_of(1376, 256, MocIndex::bitmap);
  EXPECT_FALSE(moc_products_pay(device(), shape_of(1376, 1376, MocIndex::bitmap), 512, 2048));
  EXPECT_FALSE(moc_products_pay(device(), shape, 512, 1));
  EXPECT_TRUE(moc_products_pay(device(), shape, 512, 2048));
  EXPECT_FALSE(moc_products_pay(device(), shape, 8, 2048));  // mostly padding
  EXPECT_FALSE(moc_products_pay(*Device::create_counting(Backend::cuda, 1), shape, 512, 2048));
}

TEST_P(MocProductsTest, RefusesWhatDoesNotFit) {
  const MocShape shape = shape_of(24, 5, MocIndex::uint16);
  const Ffn ffn = make_ffn(6, 16, shape);
  const MocKept kept = allocate(shape, 6, false);
  const MocWeights w = weights(ffn);
  const Tensor x = tensor({6, 16}, ffn.x);
  const Tensor gates = tensor({6, 24}, ffn.gates);
  const Tensor out = poisoned_activations({6, 16});
  const auto forward = [&](const MocShape& shape, const Tensor& x, const Tensor& gates,
                           const MocWeights& w, const MocKept& kept, const Tensor& out) {
    moc_products_forward(shape, x, gates, w, kept, out);
  };
  EXPECT_NO_THROW(forward(shape, x, gates, w, kept, out));
  EXPECT_THROW(forward(shape_of(24, 25, MocIndex::uint16), x, gates, w, kept, out),
               std::invalid_argument);
  EXPECT_THROW(forward(shape, x.rows(0, 5), gates, w, kept, out), std::invalid_argument);
  EXPECT_THROW(forward(shape, x, gates.rows(0, 5), w, kept, out), std::invalid_argument);
  EXPECT_THROW(forward(shape, x, gates, {{}, w.up, w.up}, kept, out), std::invalid_argument);
  EXPECT_THROW(forward(shape, x, gates, {{}, {}, w.down}, kept, out), std::invalid_argument);
  EXPECT_THROW(forward(shape, x, gates, w, allocate(shape, 7, false), out), std::invalid_argument);
  EXPECT_THROW(forward(shape, x, gates, w, kept, x), std::invalid_argument);
  const auto backward = [&](const Tensor& x, const MocWeights& w, const MocWeights& gradients,
                            const Tensor& dx) {
    moc_products_backward(shape, out, x, w, kept, gradients, dx);
  };
  const Tensor dx = poisoned_activations({6, 16});
  EXPECT_NO_THROW(backward({}, w, {{}, {}, ones(ffn).down}, dx));
  EXPECT_THROW(backward({}, w, ones(ffn), dx), std::invalid_argument);
  EXPECT_THROW(backward(x, {{}, w.up, w.down}, {}, dx), std::invalid_argument);
  EXPECT_THROW(backward(x, w, {w.down, {}, {}}, dx), std::invalid_argument);
  EXPECT_THROW(backward(x, w, {}, dx.rows(0, 5)), std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(MocProductsTest);

}  // namespace
}  // namespace chaski
