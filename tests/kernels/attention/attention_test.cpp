#include "kernels/attention/attention.h"

#include "tests/kernels/attention/plain_attention.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::PlainAttention;
using test::Positions;
using test::Reference;
using test::Values;

// Documents of the given lengths, repeated until every sequence is full.
Positions documents(const AttentionShape& shape, const std::vector<std::int32_t>& lengths) {
  Positions positions;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    std::size_t document = static_cast<std::size_t>(b);
    std::int32_t position = 0;
    for (std::int64_t i = 0; i < shape.sequence_length; ++i) {
      positions.push_back(position++);
      if (position == lengths[document % lengths.size()]) {
        position = 0;
        ++document;
      }
    }
  }
  return positions;
}

std::string describe(const AttentionShape& shape) {
  return "batch " + std::to_string(shape.batch) + " length " +
         std::to_string(shape.sequence_length) + " heads " + std::to_string(shape.num_heads) + "/" +
         std::to_string(shape.num_kv_heads) + " of " + std::to_string(shape.head_dim);
}

// The norm of the difference over the norm of what is expected.
double relative_error(const Values& actual, const Reference& expected) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-30);
}

class AttentionTest : public test::OpTest {
 protected:
  struct Run {
    Tensor qkv;
    Tensor positions;
    Tensor out;
    Tensor log_sum_exp;
  };

  // Not a number wherever an op does not write, in fp32 in every backend.
  Tensor poisoned(Shape shape) {
    return tensor(shape, Values(static_cast<std::size_t>(shape.num_elements()),
                                std::numeric_limits<float>::quiet_NaN()));
  }

  Run forward(const AttentionShape& shape, const Values& qkv, const Positions& positions) {
    const Run run = {activations({shape.num_tokens(), shape.qkv_size()}, qkv),
                     positions.empty() ? Tensor() : integers(positions),
                     poisoned_activations({shape.num_tokens(), shape.query_size()}),
                     poisoned({shape.batch, shape.num_heads, shape.sequence_length})};
    attention_forward(shape, run.qkv, run.positions, run.out, run.log_sum_exp);
    return run;
  }

  Values backward(const AttentionShape& shape, const Run& run, const Values& dout) {
    const Tensor dqkv = poisoned_activations({shape.num_tokens(), shape.qkv_size()});
    attention_backward(shape, run.qkv, run.positions, run.out, run.log_sum_exp,
                       activations({shape.num_tokens(), shape.query_size()}, dout), dqkv);
    return values(dqkv);
  }

  void expect_matches(const AttentionShape& shape, const Positions& positions, float limit = 2.0f) {
    SCOPED_TRACE(describe(shape) + (positions.empty() ? "" : " with documents"));
    const Values qkv =
        as_held(test::random_values(shape.num_tokens() * shape.qkv_size(), 11, limit));
    const Values dout = as_held(test::random_values(shape.num_tokens() * shape.query_size(), 12));
    const PlainAttention plain(shape, positions);
    const PlainAttention::Result expected = plain.forward(test::widen(qkv));
    const Run run = forward(shape, qkv, positions);
    test::expect_close(values(run.out), expected.out, tolerance(4e-6), "out");
    // Sums of fp32 products in every backend.
    test::expect_close(values(run.log_sum_exp), expected.log_sum_exp, 2e-6, "log_sum_exp");
    const Values dqkv = backward(shape, run, dout);
    const Reference dqkv_expected = plain.backward(test::widen(qkv), test::widen(dout));
    test::expect_close(dqkv, dqkv_expected, tolerance(1e-5), "dqkv");
    EXPECT_LT(relative_error(values(run.out), expected.out), tolerance(1e-5));
    EXPECT_LT(relative_error(dqkv, dqkv_expected), tolerance(1e-5));
  }
};

// Lengths around the ends of tiles. GPUs are compared at fewer: their kernels also run on a
// processor, a thread at a time.
std::vector<std::int64_t> lengths(bool on_cpu) {
  return on_cpu ? std::vector<std::int64_t>{1, 2, 63, 64, 65, 200}
                : std::vector<std::int64_t>{1, 7, 33, 70};
}

TEST_P(AttentionTest, MatchesPlainAttentionForEveryHeadSize) {
  for (const std::int64_t head_dim : {1, 6, 8, 16, 20, 64, 80, 128, 256})
    expect_matches({on_cpu() ? 2 : 1, on_cpu() ? 65 : 33, 2, 2, head_dim}, {});
}

TEST_P(AttentionTest, MatchesPlainAttentionForEveryLength) {
  const std::int64_t heads = on_cpu() ? 3 : 2;
  for (const std::int64_t length : lengths(on_cpu()))
    expect_matches({2, length, heads, heads, 16}, {});
}

TEST_P(AttentionTest, SharesKeysAndValuesBetweenQueryHeads) {
  if (!on_cpu()) {
    expect_matches({1, 70, 6, 2, 24}, {});
    expect_matches({2, 33, 4, 1, 8}, {});
    expect_matches({1, 67, 3, 1, 128}, {});
    return;
  }
  for (const std::int64_t length : lengths(on_cpu())) {
    expect_matches({1, length, 6, 2, 24}, {});
    expect_matches({2, length, 4, 1, 8}, {});
  }
  expect_matches({1, 70, 6, 1, 128}, {});
  expect_matches({1, 70, 4, 2, 64}, {});
}

TEST_P(AttentionTest, StaysInsideDocuments) {
  std::vector<std::vector<std::int32_t>> documents_of = {{1}, {5}, {64}, {3, 70, 1, 31}, {63, 65}};
  if (on_cpu()) documents_of.push_back({130, 2});
  const std::vector<std::int64_t> lengths =
      on_cpu() ? std::vector<std::int64_t>{2, 65, 200} : std::vector<std::int64_t>{70};
  for (const std::int64_t length : lengths) {
    for (const std::vector<std::int32_t>& each : documents_of) {
      const AttentionShape shape =
          on_cpu() ? AttentionShape{2, length, 4, 2, 24} : AttentionShape{2, length, 2, 1, 24};
      expect_matches(shape, documents(shape, each));
    }
  }
  for (const std::int64_t head_dim : {80, 128, 256}) {
    const AttentionShape shape = {1, on_cpu() ? 150 : 85, 2, 1, head_dim};
    expect_matches(shape, documents(shape, {on_cpu() ? 70 : 40, 20, 45}));
  }
}

TEST_P(AttentionTest, DocumentsContinueFromElsewhere) {
  const AttentionShape shape = {1, 150, 2, 1, 16};
  Positions positions = documents(shape, {70, 33});
  for (std::size_t i = 0; i < 70; ++i) positions[i] += 1000;
  expect_matches(shape, positions);
}

TEST_P(AttentionTest, ManyTiles) {
  const AttentionShape shape = {1, on_cpu() ? 517 : 197, 2, 1, 32};
  expect_matches(shape, {});
  expect_matches(shape, documents(shape, {200, 90}));
}

// Tells an error of the analytic reference from one of the kernel.
TEST_P(AttentionTest, ReferenceGradientIsTheDerivative) {
  const AttentionShape shape = {1, 7, 4, 2, 3};
  const Positions positions = documents(shape, {4, 9});
  const PlainAttention plain(shape, positions);
  const Reference qkv =
      test::widen(test::random_values(shape.num_tokens() * shape.qkv_size(), 21, 2.0f));
  const Reference dout =
      test::widen(test::random_values(shape.num_tokens() * shape.query_size(), 22));
  const Reference numeric = test::central_differences(
      [&](const Reference& x) {
        const Reference out = plain.forward(x).out;
        double sum = 0.0;
        for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
        return sum;
      },
      qkv);
  const Reference analytic = plain.backward(qkv, dout);
  for (std::size_t i = 0; i < numeric.size(); ++i) EXPECT_NEAR(numeric[i], analytic[i], 1e-8) << i;

  if (in_bf16()) return;  // the numbers are others there
  const Values narrow_qkv(qkv.begin(), qkv.end());
  const Run run = forward(shape, narrow_qkv, positions);
  test::expect_close(backward(shape, run, Values(dout.begin(), dout.end())), numeric, 1e-5, "dqkv");
}

TEST_P(AttentionTest, ExtremeScoresDoNotOverflow) {
  // Scores up to ±1e4: the softmax is a choice of one key.
  const AttentionShape shape = {1, 130, 2, 1, 16};
  const Values qkv = as_held(test::random_values(shape.num_tokens() * shape.qkv_size(), 31, 87.0f));
  const Values dout = as_held(test::random_values(shape.num_tokens() * shape.query_size(), 32));
  const PlainAttention plain(shape, {});
  const PlainAttention::Result expected = plain.forward(test::widen(qkv));
  const Run run = forward(shape, qkv, {});
  // A score of 1e4 in floats is known to 1e-3 only.
  test::expect_close(values(run.out), expected.out, tolerance(5e-3), "out");
  test::expect_close(values(run.log_sum_exp), expected.log_sum_exp, 1e-6, "log_sum_exp");
  const Values dqkv = backward(shape, run, dout);
  for (const float value : dqkv) ASSERT_TRUE(std::isfinite(value));
}

TEST_P(AttentionTest, NotANumberReachesOnlyWhatSeesIt) {
  const AttentionShape shape = {1, 70, 2, 2, 8};
  Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 41);
  qkv[30 * shape.qkv_size() + shape.query_size()] = NAN;  // key 30 of head 0
  const Values out = values(forward(shape, qkv, {}).out);
  for (std::int64_t i = 0; i < shape.sequence_length; ++i) {
    for (std::int64_t e = 0; e < shape.query_size(); ++e)
      EXPECT_EQ(std::isnan(out[i * shape.query_size() + e]), i >= 30 && e < shape.head_dim)
          << "token " << i << " element " << e;
  }
}

TEST_P(AttentionTest, SameBitsForAnyNumberOfThreads) {
  // On a GPU: the same bits every time.
  for (const AttentionShape& shape : {AttentionShape{1, on_cpu() ? 300 : 130, 2, 1, 32},
                                      {on_cpu() ? 3 : 1, on_cpu() ? 130 : 67, 4, 2, 64}}) {
    const Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 51);
    const Values dout = test::random_values(shape.num_tokens() * shape.query_size(), 52);
    const Positions positions = documents(shape, {100, 3, 150});
    expect_same_for_any_threads([&] {
      const Run run = forward(shape, qkv, positions);
      Values all = backward(shape, run, dout);
      for (const Tensor& part : {run.out, run.log_sum_exp}) {
        const Values more = values(part);
        all.insert(all.end(), more.begin(), more.end());
      }
      return all;
    });
  }
}

TEST_P(AttentionTest, DecodingEqualsTheForwardPass) {
  const std::int64_t length = on_cpu() ? 200 : 85;
  const std::vector<std::int64_t> steps =
      on_cpu() ? std::vector<std::int64_t>{1, 3, 40} : std::vector<std::int64_t>{15, 40};
  for (const std::int64_t step : steps) {
    for (const AttentionShape& shape :
         {AttentionShape{1, length, 4, 4, 20}, {1, length, 6, 2, 64}, {1, length, 3, 1, 1}}) {
      SCOPED_TRACE(describe(shape) + " by " + std::to_string(step));
      const Values qkv = test::random_values(length * shape.qkv_size(), 61, 2.0f);
      const Run full = forward(shape, qkv, {});
      const Tensor key_cache = poisoned_activations({length + 5, shape.kv_size()});
      const Tensor value_cache = poisoned_activations({length + 5, shape.kv_size()});
      const Tensor out = poisoned_activations({length, shape.query_size()});
      for (std::int64_t past = 0; past < length; past += step) {
        AttentionShape part = shape;
        part.sequence_length = std::min(step, length - past);
        attention_decode(part, full.qkv.rows(past, part.sequence_length), past, key_cache,
                         value_cache, out.rows(past, part.sequence_length));
      }
      test::expect_close(values(out), test::widen(values(full.out)), tolerance(4e-6), "out");
      EXPECT_TRUE(std::isnan(values(key_cache).back()));
      EXPECT_TRUE(std::isnan(values(value_cache).back()));
    }
  }
}

// New tokens one at a time and a few, after a cache of many parts, for every size of heads.
TEST_P(AttentionTest, DecodingMatchesPlainAttention) {
  for (const AttentionShape& all : {AttentionShape{1, 331, 2, 2, 6},
                                    {1, on_cpu() ? 200 : 101, 6, 1, 80},
                                    {1, on_cpu() ? 200 : 101, 4, 2, 128},
                                    {1, on_cpu() ? 131 : 69, 17, 1, 256}}) {
    SCOPED_TRACE(describe(all));
    const Values qkv = as_held(test::random_values(all.num_tokens() * all.qkv_size(), 63, 2.0f));
    const Reference expected = PlainAttention(all, {}).forward(test::widen(qkv)).out;
    const Tensor rows = activations({all.num_tokens(), all.qkv_size()}, qkv);
    const Tensor key_cache = poisoned_activations({all.num_tokens(), all.kv_size()});
    const Tensor value_cache = poisoned_activations({all.num_tokens(), all.kv_size()});
    std::int64_t past = 0;
    for (const std::int64_t count : {all.num_tokens() - 6, std::int64_t{1}, std::int64_t{5}}) {
      AttentionShape part = all;
      part.sequence_length = count;
      const Tensor out = poisoned_activations({count, all.query_size()});
      attention_decode(part, rows.rows(past, count), past, key_cache, value_cache, out);
      const Reference part_of = {expected.begin() + past * all.query_size(),
                                 expected.begin() + (past + count) * all.query_size()};
      test::expect_close(values(out), part_of, tolerance(4e-6), "out");
      past += count;
    }
  }
}

TEST_P(AttentionTest, DecodingGivesTheSameBitsForAnyNumberOfThreads) {
  constexpr std::int64_t kPast = 1000;
  const AttentionShape shape = {1, 1, 4, 2, 64};
  const Values cache = test::random_values((kPast + 1) * shape.kv_size(), 71);
  const Values qkv = test::random_values(shape.qkv_size(), 72);
  expect_same_for_any_threads([&] {
    const Tensor key_cache = activations({kPast + 1, shape.kv_size()}, cache);
    const Tensor value_cache = activations({kPast + 1, shape.kv_size()}, cache);
    const Tensor out = poisoned_activations({1, shape.query_size()});
    attention_decode(shape, activations({1, shape.qkv_size()}, qkv), kPast, key_cache, value_cache,
                     out);
    return values(out);
  });
}

TEST_P(AttentionTest, AllocatesOnlyInTheFirstCall) {
  const AttentionShape shape = {2, on_cpu() ? 100 : 9, 2, 1, 32};
  const Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 81);
  const Run run = forward(shape, qkv, {});
  const Tensor dqkv = poisoned_activations({shape.num_tokens(), shape.qkv_size()});
  const auto call_all = [&] {
    attention_forward(shape, run.qkv, run.positions, run.out, run.log_sum_exp);
    attention_backward(shape, run.qkv, run.positions, run.out, run.log_sum_exp, run.out, dqkv);
  };
  call_all();
  const std::int64_t allocations = device().num_allocations();
  for (int i = 0; i < 3; ++i) call_all();
  EXPECT_EQ(device().num_allocations(), allocations);
}

TEST_P(AttentionTest, TellsWhatRuns) {
  const AttentionShape shape = {1, 128, 2, 1, 64};
  const DType type = GetParam().activations;
  const std::string without = attention_implementation(device(), shape, type, false);
  EXPECT_EQ(attention_implementation(device(), shape, type, false), without);
  if (!in_bf16()) {
    EXPECT_EQ(without.rfind("tiles", 0), 0) << without;
  }
  const std::string with_documents = attention_implementation(device(), shape, type, true);
  EXPECT_EQ(with_documents.rfind("tiles", 0), 0) << with_documents;
}

TEST_P(AttentionTest, RefusesWhatDoesNotFit) {
  const AttentionShape shape = {1, 4, 2, 1, 8};
  const Tensor qkv = zeros({4, shape.qkv_size()});
  const Tensor out = zeros({4, shape.query_size()});
  const Tensor log_sum_exp = zeros({1, 2, 4});
  EXPECT_THROW(attention_forward({1, 4, 3, 2, 8}, qkv, Tensor(), out, log_sum_exp),
               std::invalid_argument);
  EXPECT_THROW(attention_forward({1, 4, 2, 1, 257}, qkv, Tensor(), out, log_sum_exp),
               std::invalid_argument);
  EXPECT_THROW(attention_forward({1, 5, 2, 1, 8}, qkv, Tensor(), out, log_sum_exp),
               std::invalid_argument);
  EXPECT_THROW(attention_forward(shape, qkv, integers({0, 1, 2}), out, log_sum_exp),
               std::invalid_argument);
  EXPECT_THROW(attention_backward(shape, qkv, Tensor(), out, log_sum_exp, out, qkv),
               std::invalid_argument);
  const Tensor cache = zeros({6, shape.kv_size()});
  EXPECT_THROW(attention_decode(shape, qkv, 3, cache, cache, out), std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(AttentionTest);

}  // namespace
}  // namespace chaski
