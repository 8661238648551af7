#pragma once

#include <cstdint>
#include <memory>

#include "data/sequence_dataset.h"

namespace chaski {

struct LoaderOptions {
  std::uint64_t seed = 0;
  std::int64_t global_batch = 1;  // sequences of one step, over all replicas
  std::int64_t micro_batch = 1;   // sequences of one forward pass
  std::int64_t first_row = 0;     // this replica's rows of the global batch:
  std::int64_t num_rows = 1;      // [first_row, first_row + num_rows), whole micro-batches
  bool shuffle = true;            // another order in every epoch; else from front to back
  bool reset_at_documents = false;
  std::int64_t prefetch_depth = 4;  // micro-batches prepared ahead, >= 1
};

// Micro-batches in the order of training. Row r of step s is sample s * global_batch + r of
// sequence_at(): a pure function of seed, step and row, whatever process asks. Any step may be
// asked for at any time, also again; asked for in order, they are prepared ahead by a thread of
// the loader. Allocates nothing after the first micro-batches. Used by one thread.
class Loader {
 public:
  // Throws std::invalid_argument for options that do not fit together.
  Loader(std::shared_ptr<const SequenceDataset> dataset, const LoaderOptions& options);
  ~Loader();

  std::int64_t micro_batches_per_step() const;
  const SequenceDataset& dataset() const;

  // Rows first_row + index * micro_batch … of step `step`. Valid until the next call. Rethrows
  // what went wrong when it was read.
  const Batch& get(std::uint64_t step, std::int64_t index);

  // Which pass over the data the first row of `step` belongs to, from 0.
  std::uint64_t epoch(std::uint64_t step) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace chaski
