#pragma once

#include <cstdint>
#include <vector>

#include "fault/shard.h"
#include "model/parameter.h"
#include "optim/optimizer.h"

namespace chaski {

// The tensors of a checkpoint: "weights/<name>" and "optimizer/<name>", still the live ones.
std::vector<NamedTensor> checkpoint_tensors(const ParameterSet& weights,
                                            const std::vector<NamedTensor>& optimizer);

// A copy of tensors in host memory. The memory stays for the next copy.
class Snapshot {
 public:
  Snapshot() = default;
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  // Copies with `num_threads` threads. The records are valid until the next call.
  std::vector<TensorRecord> take(const std::vector<NamedTensor>& tensors, int num_threads);
  // Takes and touches the memory for such a copy. The first touch of memory can be slow (in a
  // virtual machine, 0.1 GB/s were seen), which then does not hold up the first save.
  void prepare(std::int64_t bytes);

  static std::int64_t bytes_for(const std::vector<NamedTensor>& tensors);

 private:
  void reserve(std::int64_t bytes);

  char* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Records that read the live tensors.
std::vector<TensorRecord> live_records(const std::vector<NamedTensor>& tensors);

}  // namespace chaski
