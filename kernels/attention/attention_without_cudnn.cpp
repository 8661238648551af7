#include <stdexcept>

#include "kernels/attention/cudnn_attention.h"

// In place of cudnn_attention.cpp where cuDNN is not found, and where kernels run without a GPU.

namespace chaski::cuda {

const std::string& cudnn_refusal(Device&, const AttentionShape&) {
  static const std::string reason = "the program was built without cuDNN";
  return reason;
}

std::string describe_cudnn() {
  return "no cuDNN";
}

std::int64_t cudnn_workspace_bytes(Device&, AttentionPass, const AttentionShape&) {
  return 0;
}

void cudnn_attention_forward(const AttentionShape&, const Tensor&, const Tensor&, const Tensor&) {
  throw std::logic_error("cudnn_attention_forward: built without cuDNN");
}

void cudnn_attention_backward(const AttentionShape&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&, const Tensor&) {
  throw std::logic_error("cudnn_attention_backward: built without cuDNN");
}

}  // namespace chaski::cuda
