#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention/cudnn_descriptor.h"
#include "kernels/attention/graph.h"

namespace chaski::cuda {

// The GPU that plans are made for: that of the handle, or, where the handle is null (cuDNN 9.8 and
// newer), one that is only described.
struct CudnnTarget {
  cudnnHandle_t handle = nullptr;
  const CudnnDescriptor* properties = nullptr;
  int architecture = 0;  // 90 is compute capability 9.0
};

// A GPU described by cuDNN's own JSON text. Throws std::runtime_error before 9.8.
CudnnDescriptor described_gpu(const std::string& json);

// A graph, ready to run.
class CudnnPlan {
 public:
  // By the first of the engines named by cuDNN's heuristics that takes the graph and, as cuDNN
  // says, gives the same bits each time. Throws std::runtime_error in one line where there is none.
  CudnnPlan(const CudnnTarget& target, const Graph& graph);

  // At least 1.
  std::int64_t workspace_bytes() const { return workspace_bytes_; }
  // What cuDNN says of the engine that was taken.
  bool is_deterministic() const;

  // With the operands in the order of their numbers, on the handle's stream, which may be captured.
  void run(cudnnHandle_t handle, const std::vector<void*>& operands, void* workspace) const;

 private:
  CudnnDescriptor plan_;
  std::int64_t workspace_bytes_ = 0;
  // What a run hands over: a pointer for each tensor that is not inside.
  struct Placed {
    std::int64_t id;
    GraphPlace place;
    std::int64_t offset = 0;  // in the workspace
    float constant = 0.0f;
  };
  std::vector<Placed> placed_;
};

}  // namespace chaski::cuda
