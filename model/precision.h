#pragma once

#include <string>

#include "kernels/device/tensor.h"

namespace chaski {

// Which numbers a model is trained in. Norm statistics, losses and sums are fp32 or better in all.
enum class Precision {
  fp32,       // everything; the only one of a CPU
  bf16,       // ops in bf16; master weights, gradients and moments fp32 (mixed precision)
  bf16_pure,  // weights, gradients and moments bf16, too
};
const char* name_of(Precision precision);

// The type of every class of tensors.
struct TensorTypes {
  DType compute = DType::f32;    // activations and their gradients, and the weights that ops read
  DType weights = DType::f32;    // what the optimizer updates and checkpoints hold
  DType gradients = DType::f32;  // of the weights
  DType moments = DType::f32;

  // Whether the weights that ops read are a copy of their own.
  bool has_master_weights() const { return compute != weights; }
};
TensorTypes types_of(Precision precision);

}  // namespace chaski
