#include <gtest/gtest.h>
#include <limits>

#include "kernels/attention/graph.h"
#include "tests/cudnn_plans/graph_interpreter.h"
#include "tests/kernels/attention/plain_attention.h"

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
  AttentionShape part;
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
  // An operand of a part in memory of the whole that begins at `first`.
  struct Place {
    const std::vector<std::int64_t>& offsets;
    std::int64_t operator()(cuda::AttentionOperand operand, std::int64_t first = 0) const {
      return first + offsets.at(operand) / (operand == cuda::kLogSumExp ? 4 : 2);
    }
  };
  void read_qkv(GraphInterpreter& graph, const Place& place) const {
    graph.read(cuda::kQueries, qkv, place(cuda::kQueries));
    graph.read(cuda::kKeys, qkv, place(cuda::kKeys, keys()));
    graph.read(cuda::kValues, qkv, place(cuda::kValues, values()));
  }
  // Nothing is left as it was, and nothing is far from what it should be.
  static void expect_near(const Reference& actual, const Reference& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i)
      ASSERT_NEAR(actual[i], expected[i], kTolerance) << "element " << i;
  }

  const AttentionShape shape = GetParam().shape;
  const AttentionShape part = GetParam().part;
  const float masked = GetParam().masked;
  const Reference qkv = random(shape.num_tokens() * shape.qkv_size(), 1);
  const PlainAttention plain{shape, {}};
  const PlainAttention::Result expected = plain.forward(qkv);
};

TEST_P(AttentionGraphTest, ForwardIsAttentionWithLogSumExp) {
  const cuda::Graph operations = cuda::attention_forward_graph(part, shape, masked);
  Reference out(expected.out.size(), NAN), log_sum_exp(expected.log_sum_exp.size(), NAN);
  for (const auto& offsets : cuda::attention_part_offsets(AttentionPass::forward, part, shape)) {
    const Place place{offsets};
    GraphInterpreter graph(operations);
    read_qkv(graph, place);
    graph.run();
    graph.write(cuda::kOut, out, place(cuda::kOut));
    graph.write(cuda::kLogSumExp, log_sum_exp, place(cuda::kLogSumExp));
  }
  expect_near(out, expected.out);
  expect_near(log_sum_exp, expected.log_sum_exp);
}

TEST_P(AttentionGraphTest, BackwardIsItsGradient) {
  const Reference dout = random(shape.num_tokens() * shape.query_size(), 2);
  const cuda::Graph operations = cuda::attention_backward_graph(part, shape, masked);
  Reference dqkv(qkv.size(), NAN);
  for (const auto& offsets : cuda::attention_part_offsets(AttentionPass::backward, part, shape)) {
    const Place place{offsets};
    GraphInterpreter graph(operations);
    read_qkv(graph, place);
    graph.read(cuda::kOut, expected.out, place(cuda::kOut));
    graph.read(cuda::kLogSumExp, expected.log_sum_exp, place(cuda::kLogSumExp));
    graph.read(cuda::kDout, dout, place(cuda::kDout));
    graph.run();
    graph.write(cuda::kDqueries, dqkv, place(cuda::kDqueries));
    graph.write(cuda::kDkeys, dqkv, place(cuda::kDkeys, keys()));
    graph.write(cuda::kDvalues, dqkv, place(cuda::kDvalues, values()));
  }
  expect_near(dqkv, plain.backward(qkv, dout));
}

Case whole(const AttentionShape& shape, float masked) {
  return {shape, masked, shape};
}

INSTANTIATE_TEST_SUITE_P(
    , AttentionGraphTest,
    ::testing::Values(whole({1, 5, 1, 1, 8}, kInfinite), whole({2, 9, 3, 3, 8}, kInfinite),
                      whole({2, 7, 6, 2, 16}, kInfinite), whole({1, 16, 4, 1, 24}, kInfinite),
                      whole({3, 4, 8, 4, 8}, kLowest),
                      // In parts: of sequences, of heads, and of groups of heads.
                      Case{{6, 5, 4, 2, 8}, kInfinite, {2, 5, 4, 2, 8}},
                      Case{{2, 6, 4, 4, 8}, kInfinite, {1, 6, 2, 2, 8}},
                      Case{{2, 7, 12, 4, 8}, kInfinite, {1, 7, 6, 2, 8}}));

}  // namespace
}  // namespace chaski
