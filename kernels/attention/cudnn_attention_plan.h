#pragma once

#include "kernels/attention/attention.h"
#include "kernels/attention/cudnn_graph.h"

namespace chaski::cuda {

// The reproducible backward pass keeps a matrix of scores for each query head in the workspace.
// Where that would be more than so many bytes, the sequences of a batch, and if need be the heads
// of a sequence, go in parts, one after the other.
inline constexpr std::int64_t kMostAttentionWorkspace = std::int64_t{512} << 20;

// One pass of one shape, ready to run.
class AttentionPlan {
 public:
  // Throws std::runtime_error, in one line, where cuDNN cannot run it or is known to run it wrong.
  AttentionPlan(const CudnnTarget& target, AttentionPass pass, const AttentionShape& shape);

  std::int64_t num_parts() const { return static_cast<std::int64_t>(part_offsets_.size()); }
  std::int64_t workspace_bytes() const { return plan_.workspace_bytes(); }
  bool is_deterministic() const { return plan_.is_deterministic(); }

  // With the operands of kernels/attention/graph.h: all, or in the forward pass the first five.
  void run(cudnnHandle_t handle, const std::vector<void*>& operands, void* workspace) const;

 private:
  CudnnPlan plan_;
  std::vector<std::vector<std::int64_t>> part_offsets_;
};

}  // namespace chaski::cuda
