#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/precision.h"

namespace chaski {

// The three products of a linear layer y = x · Wᵀ in training.
enum class GemmPass { forward, input_gradient, weight_gradient };
const char* name_of(GemmPass pass);        // "forward", "dX", "dW"
const char* profiled_name(GemmPass pass);  // of matmul()'s ProfileScope

// One shape of product of a training step: op(a) [m, k] · op(b) [k, n].
struct StepGemm {
  std::string layer;  // "qkv", "attention output", "gate and up", "down", "head"
  GemmPass pass;
  std::int64_t m, n, k;
  double count;  // in the forward and backward pass of one micro-batch; the last tile of the FFN
                 // and the last chunk of the head may be parts of one

  std::string name() const;  // "qkv dX"
  // Tokens of it.
  std::int64_t& rows() { return pass == GemmPass::weight_gradient ? k : m; }
  // Of both factors and of the product, as the layer's matrices are stored.
  std::array<Shape, 3> shapes() const;
  std::array<DType, 3> types(const TensorTypes& types) const;
  void run(const Tensor& a, const Tensor& b, const Tensor& out) const;
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n * k); }
};

// All products of one micro-batch of `tokens` tokens on such a device, with a dense FFN; their
// FLOPs are those of LlamaConfig::training_flops_per_token without attention.
std::vector<StepGemm> step_gemms(const LlamaConfig& config, std::int64_t tokens, Backend backend);

}  // namespace chaski
