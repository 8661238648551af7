#include "app/training/evaluation.h"

#include <array>
#include <cmath>
#include <fmt/core.h>
#include <numbers>

namespace chaski {

double EvaluationResult::perplexity() const {
  return std::exp(loss());
}

double EvaluationResult::bits_per_byte(double tokens_per_byte) const {
  return loss() / std::numbers::ln2 * tokens_per_byte;
}

namespace {

// How many windows all processes have read, judged by this one: their shares are equal but for one
// window, and counting each other's would make them wait.
std::int64_t windows_of_job(const EvaluationWindows& windows) {
  const double share =
      static_cast<double>(windows.windows_read()) / static_cast<double>(windows.shard_windows());
  return std::llround(share * static_cast<double>(windows.num_windows()));
}

}  // namespace

EvaluationResult evaluate(const EvaluationSetting& setting,
                          const std::shared_ptr<const TokenStream>& stream, std::int64_t max_tokens,
                          ProgressBar* progress) {
  EvaluationWindows windows(stream, setting.sequence_length, setting.slot.replica,
                            setting.roster.num_replicas(), max_tokens);
  Batch batch;
  std::array<double, 2> sums{};
  while (windows.next(batch, setting.micro_batch)) {
    const MicroBatch micro_batch = setting.tensors.upload(batch, false);
    const PipelineResult result =
        setting.executor.evaluate([&](int, int) { return micro_batch; }, 1);
    sums[0] += result.loss_sum;
    sums[1] += static_cast<double>(result.num_targets);
    if (progress != nullptr) {
      progress->update(windows_of_job(windows),
                       sums[1] > 0 ? fmt::format("loss {:.4f}", sums[0] / sums[1]) : "");
    }
  }
  setting.communicator.all_reduce_sum(std::span<double>(sums));
  return {sums[0], static_cast<std::int64_t>(sums[1])};
}

double tokens_per_byte(const TokenStream& stream) {
  return static_cast<double>(stream.num_tokens()) / static_cast<double>(stream.num_bytes());
}

}  // namespace chaski
