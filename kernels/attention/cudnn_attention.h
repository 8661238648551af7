#pragma once

#include <string>

#include "kernels/attention/attention.h"

namespace chaski::cuda {

// cuDNN's fused attention, by the graphs of its C interface: bf16, causal, grouped heads, no
// documents. It reads the fused rows of qkv where they lie. Its plans are made for each shape when
// first asked for, and kept with the device. Only deterministic ones are taken.

// Why cuDNN cannot run both passes of this shape on this device, in one line; empty where it can.
const std::string& cudnn_refusal(Device& device, const AttentionShape& shape);
// Which cuDNN, e.g. "cuDNN 9.19.0".
std::string describe_cudnn();

// What it takes of the workspace for a shape that is not refused.
std::int64_t cudnn_workspace_bytes(Device& device, AttentionPass pass, const AttentionShape& shape);

// The contracts of kernels/attention/attention.h for a shape that is not refused. Throw
// std::runtime_error with cuDNN's own words where it fails.
void cudnn_attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                             const Tensor& log_sum_exp);
void cudnn_attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                              const Tensor& log_sum_exp, const Tensor& dout, const Tensor& dqkv);

}  // namespace chaski::cuda
