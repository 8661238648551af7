#include "app/plan/step_gemms.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/loss/cross_entropy.h"
#include "kernels/products/matmul.h"
#include "model/ffn.h"

namespace chaski {

const char* name_of(GemmPass pass) {
  switch (pass) {
    case GemmPass::forward:
      return "forward";
    case GemmPass::input_gradient:
      return "dX";
    case GemmPass::weight_gradient:
      return "dW";
  }
  return "unknown";
}

const char* profiled_name(GemmPass pass) {
  switch (pass) {
    case GemmPass::forward:
      return "gemm_forward";
    case GemmPass::input_gradient:
      return "gemm_input_gradient";
    case GemmPass::weight_gradient:
      return "gemm_weight_gradient";
  }
  return "unknown";
}

std::string StepGemm::name() const {
  return layer + " " + name_of(pass);
}

std::array<Shape, 3> StepGemm::shapes() const {
  switch (pass) {
    case GemmPass::forward:
      return {Shape{m, k}, Shape{n, k}, Shape{m, n}};
    case GemmPass::input_gradient:
      return {Shape{m, k}, Shape{k, n}, Shape{m, n}};
    case GemmPass::weight_gradient:
      return {Shape{k, m}, Shape{k, n}, Shape{m, n}};
  }
  throw std::logic_error("no such pass");
}

// Logits are fp32 always.
std::array<DType, 3> StepGemm::types(const TensorTypes& types) const {
  const bool logits = layer == "head" && pass == GemmPass::forward;
  return {types.compute, types.compute,
          logits                              ? DType::f32
          : pass == GemmPass::weight_gradient ? types.gradients
                                              : types.compute};
}

void StepGemm::run(const Tensor& a, const Tensor& b, const Tensor& out) const {
  switch (pass) {
    case GemmPass::forward:
      return linear_forward(a, b, out);
    case GemmPass::input_gradient:
      return linear_backward_input(a, b, out);
    case GemmPass::weight_gradient:
      return linear_backward_weight(a, b, out);
  }
}

std::vector<StepGemm> step_gemms(const LlamaConfig& config, std::int64_t tokens, Backend backend) {
  std::vector<StepGemm> gemms;
  const auto add_layer = [&](const char* layer, std::int64_t rows, std::int64_t out,
                             std::int64_t in, double times) {
    const double count = times * static_cast<double>(tokens) / static_cast<double>(rows);
    gemms.push_back({layer, GemmPass::forward, rows, out, in, count});
    gemms.push_back({layer, GemmPass::input_gradient, rows, in, out, count});
    gemms.push_back({layer, GemmPass::weight_gradient, out, in, rows, count});
  };
  const auto layers = static_cast<double>(config.num_layers);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t ffn = config.intermediate_size;
  add_layer("qkv", tokens, config.qkv_size(), hidden, layers);
  add_layer("attention output", tokens, hidden, config.query_size(), layers);
  const std::int64_t tile = ffn_tile(backend, tokens);
  add_layer("gate and up", tile, 2 * ffn, hidden, layers);
  add_layer("down", tile, hidden, ffn, layers);
  add_layer("head", std::min(HeadLoss{}.chunk, tokens), config.vocab_size, hidden, 1.0);
  return gemms;
}

}  // namespace chaski
