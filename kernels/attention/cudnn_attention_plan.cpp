#include "kernels/attention/cudnn_attention_plan.h"

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

Graph graph_of(AttentionPass pass, const AttentionShape& shape, const AttentionShape& rows) {
  // Older engines make NaN of differences between infinities.
  const float masked = cudnn().GetVersion() < 91000 ? std::numeric_limits<float>::lowest()
                                                    : -std::numeric_limits<float>::infinity();
  return pass == AttentionPass::forward ? attention_forward_graph(shape, rows, masked)
                                        : attention_backward_graph(shape, rows, masked);
}

CudnnPlan make_plan(const CudnnTarget& target, AttentionPass pass, const AttentionShape& shape,
                    const AttentionShape& rows) {
  const std::size_t version = cudnn().GetVersion();
  const std::string fault = known_fault(version, target, pass, shape);
  if (!fault.empty())
    throw std::runtime_error(fmt::format("{}: {}", cudnn_version_text(version), fault));
  try {
    return CudnnPlan(target, graph_of(pass, shape, rows));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(fmt::format(
        "{} pass: {}", pass == AttentionPass::forward ? "forward" : "backward", error.what()));
  }
}

// The fewest equal parts of `count` of which each takes no more than is allowed, or one each.
std::int64_t parts_needed(std::int64_t workspace_bytes, std::int64_t count) {
  std::int64_t parts = 1;
  while (parts < count && (count % parts != 0 || workspace_bytes / parts > kMostAttentionWorkspace))
    ++parts;
  return parts;
}

// The workspace grows with sequences and heads.
AttentionShape part_of(const AttentionShape& shape, std::int64_t workspace_bytes) {
  AttentionShape part = shape;
  const std::int64_t batches = parts_needed(workspace_bytes, shape.batch);
  const std::int64_t groups = parts_needed(workspace_bytes / batches, shape.num_kv_heads);
  part.batch /= batches;
  part.num_heads /= groups;
  part.num_kv_heads /= groups;
  return part;
}

}  // namespace

AttentionPlan::AttentionPlan(const CudnnTarget& target, AttentionPass pass,
                             const AttentionShape& shape)
    : plan_(make_plan(target, pass, shape, shape)) {
  const AttentionShape part = part_of(shape, plan_.workspace_bytes());
  part_offsets_ = attention_part_offsets(pass, part, shape);
  if (num_parts() > 1) plan_ = make_plan(target, pass, part, shape);
}

void AttentionPlan::run(cudnnHandle_t handle, const std::vector<void*>& operands,
                        void* workspace) const {
  std::vector<void*> of_part(operands.size());
  for (const std::vector<std::int64_t>& offsets : part_offsets_) {
    for (std::size_t i = 0; i < operands.size(); ++i)
      of_part[i] = static_cast<std::byte*>(operands[i]) + offsets.at(i);
    plan_.run(handle, of_part, workspace);
  }
}

}  // namespace chaski::cuda
