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
  BenchOperandList operands;
  std::function<void(const std::vector<Tensor>&)> run;
  std::function<void(const std::vector<Tensor>&)> prepare{};  // not timed, before each run
  const char* part = nullptr;  // what of `run` is meant, as in a Profile; null: all

  double timed(const std::vector<Tensor>& operands) const;  // runs once; seconds
  // FLOPs (gemm) or bytes read and written, as a counting device counts them. `run` must have been
  // made of a batch on it.
  double work_on(Device& counting) const;
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
