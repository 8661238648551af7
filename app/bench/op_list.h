#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "app/bench/operands.h"
#include "kernels/device/tensor.h"
#include "model/llama_config.h"
#include "model/precision.h"

namespace chaski {

// What an op can at most be as fast as.
enum class OpBound {
  gemm,   // FLOPs at the best GEMM rate
  read,   // bytes at the memory's read bandwidth
  write,  // … write bandwidth
  mixed,  // … the better of copy and triad
};
const char* name_of(OpBound bound);

// An op on operands of the size that a training step gives it.
struct BenchOp {
  std::string name;
  OpBound bound;
  // FLOPs (gemm) or bytes that must be read and written if nothing is in a cache and no operand is
  // moved twice.
  double work;
  BenchOperandList operands;
  std::function<double(const std::vector<Tensor>&)> run{};  // returns the seconds it took
};

// The micro-batch: token ids and targets [rows, sequence_length] i32.
struct BenchTokens {
  Tensor tokens;
  Tensor targets;
};

// In the types of a model of that precision.
std::vector<BenchOp> bench_ops(const LlamaConfig& config, const BenchTokens& batch,
                               const TensorTypes& types);

}  // namespace chaski
