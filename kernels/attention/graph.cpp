#include "kernels/attention/graph.h"

#include <cmath>
#include <utility>

namespace chaski::cuda {
namespace {

GraphDims packed(const GraphDims& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}

// Which operations, in which form and in which types, is what cuDNN's engines for attention know:
// scores and all that follows from them in f32, but the probabilities and the gradients of scores
// that enter a product in bf16; keys (in the backward pass values, too) given as transposed.
class AttentionGraph {
 public:
  AttentionGraph(const AttentionShape& shape, const AttentionShape& rows, float masked)
      : shape_(shape),
        rows_(rows),
        scores_{shape.batch, shape.num_heads, shape.sequence_length, shape.sequence_length},
        statistics_{shape.batch, shape.num_heads, shape.sequence_length, 1},
        masked_(masked) {}

  Graph forward() {
    operand(heads(shape_.num_heads), in_rows_of(rows_.qkv_size()));
    transposed_operand(shape_.num_kv_heads);
    operand(heads(shape_.num_kv_heads), in_rows_of(rows_.qkv_size()));
    operand(heads(shape_.num_heads), in_rows_of(rows_.query_size()));
    operand(statistics_, packed(statistics_), GraphType::f32);

    const int scores = add_mask(add_scores());
    const int largest = reduce(GraphOperator::largest, scores, statistics_);
    const int differences = pointwise(GraphOperator::subtract, {scores, largest});
    const int exponentials = pointwise(GraphOperator::exponential, {differences});
    const int sum = reduce(GraphOperator::sum, exponentials, statistics_);
    const int logarithm = pointwise(GraphOperator::logarithm, {sum});
    add(GraphOperator::add, {largest, logarithm}, kLogSumExp);
    const int probabilities = inside(scores_, GraphType::bf16);
    add(GraphOperator::divide, {exponentials, sum}, probabilities);
    add(GraphOperator::matmul, {probabilities, kValues}, kOut);
    return std::move(graph_);
  }

  Graph backward() {
    operand(heads(shape_.num_heads), in_rows_of(rows_.qkv_size()));
    transposed_operand(shape_.num_kv_heads);
    transposed_operand(shape_.num_kv_heads);
    operand(heads(shape_.num_heads), in_rows_of(rows_.query_size()));
    operand(statistics_, packed(statistics_), GraphType::f32);
    operand(heads(shape_.num_heads), in_rows_of(rows_.query_size()));
    operand(heads(shape_.num_heads), in_rows_of(rows_.qkv_size()));
    operand(heads(shape_.num_kv_heads), in_rows_of(rows_.qkv_size()));
    operand(heads(shape_.num_kv_heads), in_rows_of(rows_.qkv_size()));

    // What softmax's gradient subtracts in each row. A kernel of its own computes it first, so it
    // has to be in memory; the factor of 1 is where dropout would be.
    const int products = pointwise(GraphOperator::multiply, {kDout, kOut});
    const int row_dots = reduce(GraphOperator::sum, products, statistics_);
    const int scaled_dots = new_tensor(GraphPlace::workspace, GraphType::f32, statistics_);
    add(GraphOperator::multiply, {row_dots, constant(1.0f)}, scaled_dots);

    const int scores = pointwise(GraphOperator::subtract, {add_scores(), kLogSumExp});
    const int probabilities = pointwise(GraphOperator::exponential, {add_mask(scores)});
    add_sum_over_rows(probabilities, kDout, kDvalues);

    const int dprobabilities = inside(scores_);
    add(GraphOperator::matmul, {kDout, kValues}, dprobabilities);
    const int centred = pointwise(GraphOperator::subtract, {dprobabilities, scaled_dots});
    const int weighted = pointwise(GraphOperator::multiply, {centred, probabilities});
    const int dscores = pointwise(GraphOperator::multiply, {weighted, scale()});
    add_sum_over_rows(dscores, kQueries, kDkeys);

    // Straight into the gradient: with sums of its own in memory, to which blocks add in the order
    // in which they come, the result would differ from run to run.
    const int keys = new_tensor(GraphPlace::inside, GraphType::bf16, heads(shape_.num_kv_heads),
                                in_rows_of(rows_.qkv_size()));
    add(GraphOperator::transpose, {kKeys}, keys);
    add(GraphOperator::matmul, {dscores, keys}, kDqueries);
    return std::move(graph_);
  }

 private:
  GraphDims heads(std::int64_t count) const {
    return {shape_.batch, count, shape_.sequence_length, shape_.head_dim};
  }
  // Heads side by side in rows of so many elements, a row a token.
  GraphDims in_rows_of(std::int64_t size) const {
    return {shape_.sequence_length * size, shape_.head_dim, size, 1};
  }

  int new_tensor(GraphPlace place, GraphType type, const GraphDims& dims,
                 const GraphDims& strides) {
    graph_.tensors.push_back({place, type, dims, strides});
    return static_cast<int>(graph_.tensors.size()) - 1;
  }
  int new_tensor(GraphPlace place, GraphType type, const GraphDims& dims) {
    return new_tensor(place, type, dims, packed(dims));
  }
  void operand(const GraphDims& dims, const GraphDims& strides, GraphType type = GraphType::bf16) {
    new_tensor(GraphPlace::operand, type, dims, strides);
  }
  void transposed_operand(std::int64_t num_heads) {
    GraphDims dims = heads(num_heads);
    GraphDims strides = in_rows_of(rows_.qkv_size());
    std::swap(dims[2], dims[3]);
    std::swap(strides[2], strides[3]);
    operand(dims, strides);
  }
  int inside(const GraphDims& dims, GraphType type = GraphType::f32) {
    return new_tensor(GraphPlace::inside, type, dims);
  }
  int constant(float value) {
    const int tensor = new_tensor(GraphPlace::constant, GraphType::f32, {1, 1, 1, 1});
    graph_.tensors[static_cast<std::size_t>(tensor)].constant = value;
    return tensor;
  }
  int scale() {
    return constant(static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim))));
  }

  void add(GraphOperator kind, std::vector<int> inputs, int output, std::int64_t axis = -1) {
    graph_.operations.push_back({kind, std::move(inputs), output, axis});
  }
  // Of the first one's shape.
  int pointwise(GraphOperator kind, std::vector<int> inputs, GraphType type = GraphType::f32,
                std::int64_t axis = -1) {
    const int output = inside(graph_.tensors[static_cast<std::size_t>(inputs.front())].dims, type);
    add(kind, std::move(inputs), output, axis);
    return output;
  }
  int reduce(GraphOperator kind, int input, const GraphDims& dims) {
    const int output = inside(dims);
    add(kind, {input}, output);
    return output;
  }

  int add_scores() {
    const int products = inside(scores_);
    add(GraphOperator::matmul, {kQueries, kKeys}, products);
    return pointwise(GraphOperator::multiply, {products, scale()});
  }

  // A query sees keys up to its own.
  int add_mask(int scores) {
    constexpr std::int64_t kRows = 2, kColumns = 3;
    const int row = pointwise(GraphOperator::index, {scores}, GraphType::i32, kRows);
    const int column = pointwise(GraphOperator::index, {scores}, GraphType::i32, kColumns);
    const int visible = pointwise(GraphOperator::at_least, {row, column}, GraphType::boolean);
    return pointwise(GraphOperator::select, {scores, constant(masked_), visible});
  }

  // Sums of rows, each times what the scores have in it, for every column: the gradient of what
  // all queries share. That of a key or value head is the sum over its query heads.
  void add_sum_over_rows(int scores, int rows, AttentionOperand gradient) {
    const GraphDims strides = {packed(scores_)[0], packed(scores_)[1], 1, scores_[3]};
    const int transposed = new_tensor(GraphPlace::inside, GraphType::bf16, scores_, strides);
    add(GraphOperator::transpose, {scores}, transposed);
    if (shape_.num_heads == shape_.num_kv_heads) {
      add(GraphOperator::matmul, {transposed, rows}, gradient);
    } else {
      const int of_all_heads = inside(heads(shape_.num_heads), GraphType::bf16);
      add(GraphOperator::matmul, {transposed, rows}, of_all_heads);
      add(GraphOperator::sum, {of_all_heads}, gradient);
    }
  }

  AttentionShape shape_;
  AttentionShape rows_;
  GraphDims scores_;
  GraphDims statistics_;
  float masked_;
  Graph graph_;
};

}  // namespace

Graph attention_forward_graph(const AttentionShape& shape, const AttentionShape& rows,
                              float masked) {
  return AttentionGraph(shape, rows, masked).forward();
}

Graph attention_backward_graph(const AttentionShape& shape, const AttentionShape& rows,
                               float masked) {
  return AttentionGraph(shape, rows, masked).backward();
}

std::vector<std::vector<std::int64_t>> attention_part_offsets(AttentionPass pass,
                                                              const AttentionShape& part,
                                                              const AttentionShape& whole) {
  const auto graph_of = [&](const AttentionShape& shape) {
    return pass == AttentionPass::forward ? attention_forward_graph(shape, whole, 0.0f)
                                          : attention_backward_graph(shape, whole, 0.0f);
  };
  const Graph of_part = graph_of(part), of_whole = graph_of(whole);
  std::vector<std::vector<std::int64_t>> parts;
  for (std::int64_t batch = 0; batch < whole.batch; batch += part.batch) {
    for (std::int64_t i = 0; i < whole.num_kv_heads / part.num_kv_heads; ++i) {
      std::vector<std::int64_t>& offsets = parts.emplace_back();
      for (std::size_t t = 0; of_part.tensors[t].place == GraphPlace::operand; ++t) {
        const GraphTensor& tensor = of_part.tensors[t];
        const std::int64_t elements =
            batch * of_whole.tensors[t].strides[0] + i * tensor.dims[1] * tensor.strides[1];
        offsets.push_back(elements * bytes_of(tensor.type));
      }
    }
  }
  return parts;
}

}  // namespace chaski::cuda
