#include "kernels/attention_graph.h"

#include <gtest/gtest.h>
#include <limits>

#include "tests/cudnn_plans/graph_interpreter.h"
#include "tests/kernels/plain_attention.h"

namespace chaski {
namespace {

using test::GraphInterpreter;
using test::PlainAttention;
using test::Reference;

// The factor 1/sqrt(head_dim) is handed to cuDNN as a float.
constexpr double kTolerance = 1e-6;

struct Case {
  AttentionShape shape;
  float masked;
};

constexpr float kInfinite = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

// The very operations that cuDNN is given, computed in double.
class AttentionGraphTest : public ::testing::TestWithParam<Case> {
 protected:
  Reference random(std::int64_t count, unsigned seed) const {
    const test::Values values = test::random_values(count, seed, 2.0f);
    return Reference(values.begin(), values.end());
  }
  std::int64_t keys() const { return shape.query_size(); }
  std::int64_t values() const { return shape.query_size() + shape.kv_size(); }
  void read_qkv(GraphInterpreter& graph) const {
    graph.read(cuda::kQueries, qkv, 0);
    graph.read(cuda::kKeys, qkv, keys());
    graph.read(cuda::kValues, qkv, values());
  }
  // Nothing is left as it was, and nothing is far from what it should be.
  static void expect_near(const Reference& actual, const Reference& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i)
      ASSERT_NEAR(actual[i], expected[i], kTolerance) << "element " << i;
  }

  const AttentionShape shape = GetParam().shape;
  const float masked = GetParam().masked;
  const Reference qkv = random(shape.num_tokens() * shape.qkv_size(), 1);
  const PlainAttention plain{shape, {}};
  const PlainAttention::Result expected = plain.forward(qkv);
};

TEST_P(AttentionGraphTest, ForwardIsAttentionWithLogSumExp) {
  const cuda::Graph operations = cuda::attention_forward_graph(shape, masked);
  GraphInterpreter graph(operations);
  read_qkv(graph);
  graph.run();
  Reference out(expected.out.size(), NAN), log_sum_exp(expected.log_sum_exp.size(), NAN);
  graph.write(cuda::kOut, out, 0);
  graph.write(cuda::kLogSumExp, log_sum_exp, 0);
  expect_near(out, expected.out);
  expect_near(log_sum_exp, expected.log_sum_exp);
}

TEST_P(AttentionGraphTest, BackwardIsItsGradient) {
  const Reference dout = random(shape.num_tokens() * shape.query_size(), 2);
  const cuda::Graph operations = cuda::attention_backward_graph(shape, masked);
  GraphInterpreter graph(operations);
  read_qkv(graph);
  graph.read(cuda::kOut, expected.out, 0);
  graph.read(cuda::kLogSumExp, expected.log_sum_exp, 0);
  graph.read(cuda::kDout, dout, 0);
  graph.run();
  Reference dqkv(qkv.size(), NAN);
  graph.write(cuda::kDqueries, dqkv, 0);
  graph.write(cuda::kDkeys, dqkv, keys());
  graph.write(cuda::kDvalues, dqkv, values());
  expect_near(dqkv, plain.backward(qkv, dout));
}

INSTANTIATE_TEST_SUITE_P(, AttentionGraphTest,
                         ::testing::Values(Case{{1, 5, 1, 1, 8}, kInfinite},
                                           Case{{2, 9, 3, 3, 8}, kInfinite},
                                           Case{{2, 7, 6, 2, 16}, kInfinite},
                                           Case{{1, 16, 4, 1, 24}, kInfinite},
                                           Case{{3, 4, 8, 4, 8}, kLowest}));

}  // namespace
}  // namespace chaski
