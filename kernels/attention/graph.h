#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"

namespace chaski::cuda {

// Attention as a list of operations on numbered tensors. cuDNN recognizes fused attention by the
// operations that it consists of; cudnn_graph.cpp makes cuDNN's descriptors of such a list, and a
// test computes the same list in double.

enum class GraphType { f32, bf16, i32, boolean };
// Of an element that is in memory.
constexpr std::int64_t bytes_of(GraphType type) {
  return type == GraphType::bf16 ? 2 : 4;
}

// Where the elements of a tensor are.
enum class GraphPlace {
  operand,    // in memory of the caller
  workspace,  // in memory between kernels of one run
  constant,   // one number, handed over when the graph runs
  inside,     // nowhere: a fused kernel keeps them to itself
};

// Batch, heads, rows, columns.
using GraphDims = std::array<std::int64_t, 4>;

struct GraphTensor {
  GraphPlace place;
  GraphType type;
  GraphDims dims;
  GraphDims strides;  // in elements
  float constant = 0.0f;
};

// Of elements at the same place; a dimension of 1 goes with any.
enum class GraphOperator {
  matmul,       // the second may have fewer heads, each for as many adjacent ones of the first
  multiply,     // a · b
  divide,       // a / b
  add,          // a + b
  subtract,     // a - b
  exponential,  // exp a
  logarithm,    // ln a
  index,        // the place along the axis; of a only the shape counts
  at_least,     // a >= b
  select,       // a where c, else b
  sum,        // over the dimensions that the output has not; over adjacent heads where it has fewer
  largest,    // as sum
  transpose,  // rows for columns: no more than other strides
};

struct GraphOperation {
  GraphOperator kind;
  std::vector<int> inputs;  // numbers of tensors
  int output;
  std::int64_t axis = -1;
};

struct Graph {
  std::vector<GraphTensor> tensors;
  std::vector<GraphOperation> operations;  // each after those whose outputs it reads
};

// The numbers of the operands: of the first five in the forward graph, of all in the backward one.
// Queries, keys and values lie side by side in the rows of qkv, their gradients in those of dqkv.
enum AttentionOperand : int {
  kQueries,
  kKeys,
  kValues,
  kOut,
  kLogSumExp,
  kDout,
  kDqueries,
  kDkeys,
  kDvalues,
};

// Masked scores become `masked`: minus infinity, or the lowest number there is. The operands lie in
// rows of `rows`, which may have more heads (and sequences) than the shape.
Graph attention_forward_graph(const AttentionShape& shape, const AttentionShape& rows,
                              float masked);
Graph attention_backward_graph(const AttentionShape& shape, const AttentionShape& rows,
                               float masked);

// Where the operands of each part of so many sequences and heads begin, in bytes after those of
// the whole, by the number of the operand; of a part with fewer heads there is one sequence.
std::vector<std::vector<std::int64_t>> attention_part_offsets(AttentionPass pass,
                                                              const AttentionShape& part,
                                                              const AttentionShape& whole);

}  // namespace chaski::cuda
