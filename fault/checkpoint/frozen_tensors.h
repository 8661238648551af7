#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "fault/checkpoint/shard.h"
#include "kernels/device/host_reader.h"
#include "model/parameter.h"
#include "optim/optimizer.h"

namespace chaski {

// The tensors of a checkpoint's shard: "weights/<name>" and "optimizer/<name>", still the live
// ones. What belongs to the whole model is in shard 0.
std::vector<NamedTensor> checkpoint_tensors(const ParameterSet& weights,
                                            const std::vector<NamedTensor>& optimizer, int shard);

// Tensors as they are now, although they change later. Between two updates they do not, and that is
// most of a step: one thread reads them in pieces, front to back, while training computes; before
// an update, keep() copies only what has not been read yet. A save that is faster than a step takes
// no copy at all; on a slow disk the copy is at most as large as the tensors.
class FrozenTensors {
 public:
  explicit FrozenTensors(std::vector<NamedTensor> tensors);
  ~FrozenTensors();
  FrozenTensors(const FrozenTensors&) = delete;
  FrozenTensors& operator=(const FrozenTensors&) = delete;

  // To be read by one thread, each record once, in order, front to back; valid with this object.
  std::vector<TensorRecord> records();
  // Called, with the reader possibly at work, before the tensors change for the first time. Copies
  // with `num_threads` threads. False: there is not enough memory, and nothing has been done.
  bool keep(int num_threads);
  // What is not read yet is not wanted any more.
  void release();

  // Of keep(), which copies once at most.
  struct Copy {
    std::int64_t bytes = 0;
    double seconds = 0;
  };
  Copy copied() const;

 private:
  const void* read(std::int64_t begin, const Tensor& live, std::int64_t offset, std::int64_t bytes);
  void copy_to(char* kept, int num_threads) const;

  const std::vector<NamedTensor> tensors_;
  std::vector<std::int64_t> begin_;  // of each tensor, were all laid one after the other
  std::int64_t end_ = 0;
  std::vector<char> piece_;             // handed out instead of live memory
  std::unique_ptr<HostReader> reader_;  // of the memory of the GPU that some lie on; null: none

  mutable std::mutex mutex_;
  std::int64_t position_ = 0;  // up to which everything has been read
  char* kept_ = nullptr;       // the bytes from kept_begin_ on
  std::int64_t kept_begin_ = 0;
  Copy copied_;
};

// Records that read the live tensors.
std::vector<TensorRecord> live_records(const std::vector<NamedTensor>& tensors);

}  // namespace chaski
