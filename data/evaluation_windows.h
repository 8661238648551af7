#pragma once

#include <cstdint>
#include <memory>

#include "data/sequence_dataset.h"

namespace chaski {

// Reads a token stream for evaluation: in order, in windows of sequence_length inputs, so that
// every token but the very first is a target exactly once. The last window has as many inputs as
// are left. The windows can be shared out to several processes; together they read each once.
class EvaluationWindows {
 public:
  // Process `shard` of `num_shards` reads a contiguous run of the windows. `max_tokens` > 0: only
  // the first windows, which together have at least that many targets. Throws
  // std::invalid_argument for a stream of less than 2 tokens or numbers out of range.
  EvaluationWindows(std::shared_ptr<const TokenStream> stream, std::int64_t sequence_length,
                    std::int64_t shard = 0, std::int64_t num_shards = 1,
                    std::int64_t max_tokens = 0);

  std::uint64_t num_windows() const { return num_windows_; }               // of all shards
  std::uint64_t shard_windows() const { return end_ - begin_; }            // of this one
  std::uint64_t num_targets() const { return stream_->num_tokens() - 1; }  // of the stream
  std::uint64_t windows_read() const { return next_ - begin_; }            // of this shard
  const TokenStream& stream() const { return *stream_; }

  // Fills `batch` with the shard's next windows: up to `most_rows` whole ones, or the last, short
  // one alone. Positions count from 0 in every window. False at the end.
  bool next(Batch& batch, std::int64_t most_rows);

 private:
  std::shared_ptr<const TokenStream> stream_;
  std::int64_t sequence_length_;
  std::uint64_t num_windows_ = 0;
  std::uint64_t begin_ = 0, end_ = 0, next_ = 0;
};

}  // namespace chaski
