#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "app/step/batch_tensors.h"
#include "app/step/membership.h"
#include "data/loader.h"
#include "kernels/device/device.h"
#include "parallel/pipeline/executor.h"

namespace chaski {

// The rows that this process's replicas train on, read ahead and brought to the device. Which rows
// a replica reads follows from the step alone, whoever hosts it.
class BatchFeed {
 public:
  // `options` say everything but the rows, which are each replica's own; `micro_batches` is of a
  // replica in a step.
  BatchFeed(Device& device, std::shared_ptr<const SequenceDataset> data,
            const LoaderOptions& options, std::int64_t micro_batches);

  // Feeds the replicas that this process hosts, at first and whenever the roster has changed.
  void adopt(const Membership& membership);

  // Brings the step's micro-batches to the device, where they stay until the next step's.
  void upload(std::int64_t step);
  // Those of the last upload(); valid as long as this.
  BatchSource source() const;

  // Which pass over the data the step's first row belongs to, from 0.
  std::uint64_t epoch(std::int64_t step) const;
  // By replica: a place for evaluation's tokens, one that the next upload() takes again.
  std::map<int, BatchTensors*> evaluation_tensors();

 private:
  struct Replica {
    std::unique_ptr<Loader> loader;
    std::vector<BatchTensors> batches;  // one a micro-batch of a step
  };

  Device& device_;
  std::shared_ptr<const SequenceDataset> data_;
  LoaderOptions options_;
  std::int64_t micro_batches_;
  std::map<int, Replica> replicas_;
};

}  // namespace chaski
