#include "kernels/attention.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;
using Positions = std::vector<std::int32_t>;

// The textbook computation in double, one row of scores at a time.
class PlainAttention {
 public:
  PlainAttention(const AttentionShape& shape, const Positions& positions)
      : shape_(shape), positions_(positions) {}

  struct Result {
    Reference out;
    Reference log_sum_exp;
  };

  Result forward(const Reference& qkv) const {
    Result result{Reference(shape_.num_tokens() * shape_.query_size()),
                  Reference(shape_.num_tokens() * shape_.num_heads)};
    for_each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      double& log_sum_exp =
          result.log_sum_exp[(b * shape_.num_heads + h) * shape_.sequence_length + i];
      const Reference weights = row_weights(qkv, b, h, i, &log_sum_exp);
      for (std::int64_t j = first(b, i); j <= i; ++j) {
        for (std::int64_t e = 0; e < shape_.head_dim; ++e)
          result.out[out_index(b, h, i) + e] += weights[j] * qkv[value_index(b, h, j) + e];
      }
    });
    return result;
  }

  Reference backward(const Reference& qkv, const Reference& dout) const {
    Reference dqkv(qkv.size());
    for_each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      double unused;
      const Reference weights = row_weights(qkv, b, h, i, &unused);
      const double* dout_row = &dout[out_index(b, h, i)];
      Reference dweights(shape_.sequence_length);
      double mean = 0.0;
      for (std::int64_t j = first(b, i); j <= i; ++j) {
        for (std::int64_t e = 0; e < shape_.head_dim; ++e) {
          dweights[j] += dout_row[e] * qkv[value_index(b, h, j) + e];
          dqkv[value_index(b, h, j) + e] += weights[j] * dout_row[e];
        }
        mean += weights[j] * dweights[j];
      }
      for (std::int64_t j = first(b, i); j <= i; ++j) {
        const double dscore = weights[j] * (dweights[j] - mean) * scale();
        for (std::int64_t e = 0; e < shape_.head_dim; ++e) {
          dqkv[query_index(b, h, i) + e] += dscore * qkv[key_index(b, h, j) + e];
          dqkv[key_index(b, h, j) + e] += dscore * qkv[query_index(b, h, i) + e];
        }
      }
    });
    return dqkv;
  }

 private:
  template <typename F>
  void for_each_query(F f) const {
    for (std::int64_t b = 0; b < shape_.batch; ++b) {
      for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
        for (std::int64_t i = 0; i < shape_.sequence_length; ++i) f(b, h, i);
      }
    }
  }
  Reference row_weights(const Reference& qkv, std::int64_t b, std::int64_t h, std::int64_t i,
                        double* log_sum_exp) const {
    Reference scores(shape_.sequence_length);
    double largest = -INFINITY;
    for (std::int64_t j = first(b, i); j <= i; ++j) {
      for (std::int64_t e = 0; e < shape_.head_dim; ++e)
        scores[j] += qkv[query_index(b, h, i) + e] * qkv[key_index(b, h, j) + e] * scale();
      largest = std::max(largest, scores[j]);
    }
    double total = 0.0;
    for (std::int64_t j = first(b, i); j <= i; ++j) total += std::exp(scores[j] - largest);
    *log_sum_exp = largest + std::log(total);
    for (double& score : scores) score = std::exp(score - *log_sum_exp);
    return scores;
  }
  std::int64_t first(std::int64_t b, std::int64_t i) const {
    return positions_.empty() ? 0 : std::max<std::int64_t>(0, i - positions_[token(b, i)]);
  }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(shape_.head_dim)); }
  std::int64_t token(std::int64_t b, std::int64_t i) const {
    return b * shape_.sequence_length + i;
  }
  std::int64_t query_index(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return token(b, i) * shape_.qkv_size() + h * shape_.head_dim;
  }
  std::int64_t key_index(std::int64_t b, std::int64_t h, std::int64_t j) const {
    const std::int64_t kv_head = h / (shape_.num_heads / shape_.num_kv_heads);
    return token(b, j) * shape_.qkv_size() + shape_.query_size() + kv_head * shape_.head_dim;
  }
  std::int64_t value_index(std::int64_t b, std::int64_t h, std::int64_t j) const {
    return key_index(b, h, j) + shape_.kv_size();
  }
  std::int64_t out_index(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return token(b, i) * shape_.query_size() + h * shape_.head_dim;
  }

  AttentionShape shape_;
  Positions positions_;
};

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

class AttentionTest : public test::OpTest {
 protected:
  struct Run {
    Tensor qkv;
    Tensor positions;
    Tensor out;
    Tensor log_sum_exp;
  };

  Run forward(const AttentionShape& shape, const Values& qkv, const Positions& positions) {
    const Run run = {tensor({shape.num_tokens(), shape.qkv_size()}, qkv),
                     positions.empty() ? Tensor() : integers(positions),
                     zeros({shape.num_tokens(), shape.query_size()}),
                     zeros({shape.batch, shape.num_heads, shape.sequence_length})};
    attention_forward(shape, run.qkv, run.positions, run.out, run.log_sum_exp);
    return run;
  }

  Values backward(const AttentionShape& shape, const Run& run, const Values& dout) {
    const Tensor dqkv = tensor({shape.num_tokens(), shape.qkv_size()},
                               Values(shape.num_tokens() * shape.qkv_size(), 7.0f));
    attention_backward(shape, run.qkv, run.positions, run.out, run.log_sum_exp,
                       tensor({shape.num_tokens(), shape.query_size()}, dout), dqkv);
    return values(dqkv);
  }

  void expect_matches(const AttentionShape& shape, const Positions& positions, float limit = 2.0f) {
    SCOPED_TRACE(describe(shape) + (positions.empty() ? "" : " with documents"));
    const Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 11, limit);
    const Values dout = test::random_values(shape.num_tokens() * shape.query_size(), 12);
    const PlainAttention plain(shape, positions);
    const PlainAttention::Result expected = plain.forward(test::widen(qkv));
    const Run run = forward(shape, qkv, positions);
    test::expect_close(values(run.out), expected.out, 4e-6, "out");
    test::expect_close(values(run.log_sum_exp), expected.log_sum_exp, 2e-6, "log_sum_exp");
    test::expect_close(backward(shape, run, dout),
                       plain.backward(test::widen(qkv), test::widen(dout)), 1e-5, "dqkv");
  }
};

constexpr std::int64_t kLengths[] = {1, 2, 63, 64, 65, 200};

TEST_P(AttentionTest, MatchesPlainAttentionForEveryHeadSize) {
  for (const std::int64_t head_dim : {1, 8, 20, 64, 80, 128, 256})
    expect_matches({2, 65, 2, 2, head_dim}, {});
}

TEST_P(AttentionTest, MatchesPlainAttentionForEveryLength) {
  for (const std::int64_t length : kLengths) expect_matches({2, length, 3, 3, 16}, {});
}

TEST_P(AttentionTest, SharesKeysAndValuesBetweenQueryHeads) {
  for (const std::int64_t length : kLengths) {
    expect_matches({1, length, 6, 2, 24}, {});
    expect_matches({2, length, 4, 1, 8}, {});
  }
}

TEST_P(AttentionTest, StaysInsideDocuments) {
  const std::vector<std::vector<std::int32_t>> lengths = {{1},      {5},     {64}, {3, 70, 1, 31},
                                                          {130, 2}, {63, 65}};
  for (const std::int64_t length : {2, 65, 200}) {
    for (const std::vector<std::int32_t>& documents_of : lengths) {
      const AttentionShape shape = {2, length, 4, 2, 24};
      expect_matches(shape, documents(shape, documents_of));
    }
  }
}

TEST_P(AttentionTest, DocumentsContinueFromElsewhere) {
  const AttentionShape shape = {1, 150, 2, 1, 16};
  Positions positions = documents(shape, {70, 33});
  for (std::size_t i = 0; i < 70; ++i) positions[i] += 1000;
  expect_matches(shape, positions);
}

TEST_P(AttentionTest, ManyTiles) {
  expect_matches({1, 517, 2, 1, 32}, {});
  const AttentionShape shape = {1, 517, 2, 1, 32};
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

  const Values narrow_qkv(qkv.begin(), qkv.end());
  const Run run = forward(shape, narrow_qkv, positions);
  test::expect_close(backward(shape, run, Values(dout.begin(), dout.end())), numeric, 1e-5, "dqkv");
}

TEST_P(AttentionTest, ExtremeScoresDoNotOverflow) {
  // Scores up to ±1e4: the softmax is a choice of one key.
  const AttentionShape shape = {1, 130, 2, 1, 16};
  const Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 31, 87.0f);
  const Values dout = test::random_values(shape.num_tokens() * shape.query_size(), 32);
  const PlainAttention plain(shape, {});
  const PlainAttention::Result expected = plain.forward(test::widen(qkv));
  const Run run = forward(shape, qkv, {});
  // A score of 1e4 in floats is known to 1e-3 only.
  test::expect_close(values(run.out), expected.out, 5e-3, "out");
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
  for (const AttentionShape& shape : {AttentionShape{1, 300, 2, 1, 32}, {3, 130, 4, 2, 64}}) {
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
  constexpr std::int64_t kLength = 200;
  for (const std::int64_t step : {1, 3, 40}) {
    for (const AttentionShape& shape :
         {AttentionShape{1, kLength, 4, 4, 20}, {1, kLength, 6, 2, 64}, {1, kLength, 3, 1, 1}}) {
      SCOPED_TRACE(describe(shape) + " by " + std::to_string(step));
      const Values qkv = test::random_values(kLength * shape.qkv_size(), 61, 2.0f);
      const Run full = forward(shape, qkv, {});
      const Tensor key_cache = zeros({kLength + 5, shape.kv_size()});
      const Tensor value_cache = zeros({kLength + 5, shape.kv_size()});
      const Tensor out = zeros({kLength, shape.query_size()});
      for (std::int64_t past = 0; past < kLength; past += step) {
        AttentionShape part = shape;
        part.sequence_length = std::min(step, kLength - past);
        attention_decode(part, full.qkv.rows(past, part.sequence_length), past, key_cache,
                         value_cache, out.rows(past, part.sequence_length));
      }
      test::expect_close(values(out), test::widen(values(full.out)), 4e-6, "out");
    }
  }
}

TEST_P(AttentionTest, DecodingGivesTheSameBitsForAnyNumberOfThreads) {
  constexpr std::int64_t kPast = 1000;
  const AttentionShape shape = {1, 1, 4, 2, 64};
  const Values cache = test::random_values((kPast + 1) * shape.kv_size(), 71);
  const Values qkv = test::random_values(shape.qkv_size(), 72);
  expect_same_for_any_threads([&] {
    const Tensor key_cache = tensor({kPast + 1, shape.kv_size()}, cache);
    const Tensor value_cache = tensor({kPast + 1, shape.kv_size()}, cache);
    const Tensor out = zeros({1, shape.query_size()});
    attention_decode(shape, tensor({1, shape.qkv_size()}, qkv), kPast, key_cache, value_cache, out);
    return values(out);
  });
}

TEST_P(AttentionTest, AllocatesOnlyInTheFirstCall) {
  const AttentionShape shape = {2, 100, 2, 1, 32};
  const Values qkv = test::random_values(shape.num_tokens() * shape.qkv_size(), 81);
  const Run run = forward(shape, qkv, {});
  const Tensor dqkv = zeros({shape.num_tokens(), shape.qkv_size()});
  const auto call_all = [&] {
    attention_forward(shape, run.qkv, run.positions, run.out, run.log_sum_exp);
    attention_backward(shape, run.qkv, run.positions, run.out, run.log_sum_exp, run.out, dqkv);
  };
  call_all();
  const std::int64_t allocations = device().num_allocations();
  for (int i = 0; i < 3; ++i) call_all();
  EXPECT_EQ(device().num_allocations(), allocations);
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
