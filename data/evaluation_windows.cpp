#include "data/evaluation_windows.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>
#include <stdexcept>

namespace chaski {

EvaluationWindows::EvaluationWindows(std::shared_ptr<const TokenStream> stream,
                                     std::int64_t sequence_length, std::int64_t shard,
                                     std::int64_t num_shards, std::int64_t max_tokens)
    : stream_(std::move(stream)), sequence_length_(sequence_length) {
  if (sequence_length < 1) {
    throw std::invalid_argument(
        fmt::format("sequence_length {}: must be at least 1", sequence_length));
  }
  if (shard < 0 || shard >= num_shards) {
    throw std::invalid_argument(fmt::format("shard {} of {}", shard, num_shards));
  }
  if (stream_->num_tokens() < 2) {
    throw std::invalid_argument(fmt::format("{}: the {} part is too short to be evaluated",
                                            stream_->files().front()->path(),
                                            name_of(stream_->part())));
  }
  const auto length = static_cast<std::uint64_t>(sequence_length);
  const std::uint64_t targets =
      max_tokens > 0 ? std::min(num_targets(), static_cast<std::uint64_t>(max_tokens))
                     : num_targets();
  num_windows_ = (targets - 1) / length + 1;
  // Quotient and remainder apart: the product of windows and shards might not fit.
  const auto first_of = [&](std::int64_t s) {
    const auto share = num_windows_ / static_cast<std::uint64_t>(num_shards);
    const auto rest = num_windows_ % static_cast<std::uint64_t>(num_shards);
    return share * static_cast<std::uint64_t>(s) + std::min(static_cast<std::uint64_t>(s), rest);
  };
  begin_ = next_ = first_of(shard);
  end_ = first_of(shard + 1);
}

bool EvaluationWindows::next(Batch& batch, std::int64_t most_rows) {
  if (next_ == end_) return false;
  const auto length = static_cast<std::uint64_t>(sequence_length_);
  const std::uint64_t whole = std::min(end_, num_targets() / length);  // windows before this one
  std::uint64_t rows = 1;
  std::uint64_t inputs = num_targets() - next_ * length;  // of the short window
  if (next_ < whole) {
    rows =
        std::min(whole - next_, static_cast<std::uint64_t>(std::max<std::int64_t>(most_rows, 1)));
    inputs = length;
  }
  batch.resize(static_cast<std::int64_t>(rows), static_cast<std::int64_t>(inputs));
  stream_->read(next_ * length, rows * inputs, batch.tokens.data());
  stream_->read(next_ * length + 1, rows * inputs, batch.targets.data());
  for (std::uint64_t row = 0; row < rows; ++row) {
    const auto positions = batch.positions.begin() + static_cast<std::ptrdiff_t>(row * inputs);
    std::iota(positions, positions + static_cast<std::ptrdiff_t>(inputs), 0);
  }
  next_ += rows;
  return true;
}

}  // namespace chaski
