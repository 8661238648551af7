#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/parameter.h"
#include "model/stage.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

struct GradientReducerOptions {
  // A bucket, some whole parameters of about this size, is sent when its gradients are ready.
  // Smaller for small models, so that there are about min_buckets; larger where there would be more
  // than kMaxBuckets.
  std::int64_t bucket_bytes = 16 << 20;
  int min_buckets = 4;
};

// Sums a stage's gradients over the processes that host its replicas, while the backward pass still
// runs: give it to the last micro-batch as its GradientListener. In place, on the gradient buffer.
// All ranks get the same bits. On CPUs the sum of an element is taken in ascending order of ranks
// by one process and sent to the others: the same in every run. On GPUs NCCL takes it, in an order
// of its own: the same in every run where the GPUs, their links and NCCL's choices (NCCL_ALGO and
// NCCL_PROTO fix them) are the same; gradients in bf16 are rounded with each addition.
class GradientReducer : public GradientListener {
 public:
  static constexpr int kMaxBuckets = 256;

  // `ranks`: as Roster::ranks_of_stage, this process among them. `stage` keeps the messages of
  // different stages apart. With one rank nothing is ever sent. For the gradients that there are,
  // the same on all ranks, until others are allocated. On GPUs all ranks must make theirs at a
  // time, and gradients are undefined after it until zeroed. Throws std::invalid_argument where the
  // program lacks NCCL.
  GradientReducer(Communicator& communicator, const std::vector<int>& ranks, int stage,
                  ParameterSet& parameters, const GradientReducerOptions& options = {});
  ~GradientReducer() override;

  // Parameters [first, first + count) will not change any more; starts buckets that are complete
  // and moves what is in flight. Throws PeerFailure.
  void gradients_ready(std::int64_t first, std::int64_t count) override;
  // Starts what has not been announced and waits for all. After it all gradients are sums over the
  // ranks. Throws PeerFailure.
  void finish();
  // Forgets the step: ends what is in flight, or, where a peer hangs, the process. Gradients are
  // undefined until zeroed. Destroying the reducer does the same, and is all that may be done with
  // it afterwards.
  void abort() noexcept;

  std::int64_t num_buckets() const;
  std::int64_t bytes_per_step() const;  // sent by this process in a step
  double last_wait_seconds() const;     // what finish() waited: communication not hidden

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace chaski
