#include "kernels/cudnn_attention_plan.h"

#include <cstddef>
#include <fmt/format.h>
#include <limits>
#include <stdexcept>

namespace chaski::cuda {
namespace {

// What NVIDIA says of older versions: their engines take the graph and compute something else.
std::string known_fault(std::size_t version, const CudnnTarget& target, AttentionPass pass,
                        const AttentionShape& shape) {
  if (version < 90000) return "9.0 or newer is needed";
  if (version == 91000 || version == 91001) return "its attention is wrong; 9.10.2 or newer is not";
  if (pass == AttentionPass::forward) return {};
  if (version <= 91500 && shape.sequence_length % 128 != 0)
    return "its backward pass needs sequences of multiples of 128; 9.15.1 or newer takes all";
  if (version < 91800 && target.architecture / 10 == 10)
    return "its backward pass is not reproducible on such a GPU; that of 9.18 or newer is";
  if (shape.sequence_length == 1) return "its backward pass takes no sequence of one token";
  return {};
}

Graph graph_of(AttentionPass pass, const AttentionShape& shape) {
  // Older engines make NaN of differences between infinities.
  const float masked = cudnn().GetVersion() < 91000 ? std::numeric_limits<float>::lowest()
                                                    : -std::numeric_limits<float>::infinity();
  return pass == AttentionPass::forward ? attention_forward_graph(shape, masked)
                                        : attention_backward_graph(shape, masked);
}

CudnnPlan make_plan(const CudnnTarget& target, AttentionPass pass, const AttentionShape& shape) {
  const std::size_t version = cudnn().GetVersion();
  const std::string fault = known_fault(version, target, pass, shape);
  if (!fault.empty())
    throw std::runtime_error(fmt::format("{}: {}", cudnn_version_text(version), fault));
  try {
    return CudnnPlan(target, graph_of(pass, shape));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(fmt::format(
        "{} pass: {}", pass == AttentionPass::forward ? "forward" : "backward", error.what()));
  }
}

// The workspace grows with the batch.
std::int64_t parts_needed(std::int64_t workspace_bytes, std::int64_t batch) {
  std::int64_t parts = 1;
  while (parts < batch && (batch % parts != 0 || workspace_bytes / parts > kMostAttentionWorkspace))
    ++parts;
  return parts;
}

}  // namespace

AttentionPlan::AttentionPlan(const CudnnTarget& target, AttentionPass pass,
                             const AttentionShape& shape)
    : plan_(make_plan(target, pass, shape)),
      num_parts_(parts_needed(plan_.workspace_bytes(), shape.batch)) {
  AttentionShape part = shape;
  part.batch /= num_parts_;
  if (num_parts_ > 1) plan_ = make_plan(target, pass, part);
  for (const GraphTensor& tensor : graph_of(pass, part).tensors) {
    if (tensor.place == GraphPlace::operand)
      part_bytes_.push_back(part.batch * tensor.strides[0] * bytes_of(tensor.type));
  }
}

void AttentionPlan::run(cudnnHandle_t handle, const std::vector<void*>& operands,
                        void* workspace) const {
  std::vector<void*> of_part = operands;
  for (std::int64_t part = 0; part < num_parts_; ++part) {
    plan_.run(handle, of_part, workspace);
    for (std::size_t i = 0; i < of_part.size(); ++i)
      of_part[i] = static_cast<std::byte*>(of_part[i]) + part_bytes_[i];
  }
}

}  // namespace chaski::cuda
