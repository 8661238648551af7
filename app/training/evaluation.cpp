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

// The windows of one replica, and where they are brought to.
struct ReplicaWindows {
  EvaluationWindows windows;
  BatchTensors* tensors;
};

// How many windows all processes have read, judged by one replica: the others' shares are equal but
// for one window, and counting them would make them wait.
std::int64_t windows_of_job(const EvaluationWindows& windows) {
  const double share =
      static_cast<double>(windows.windows_read()) / static_cast<double>(windows.shard_windows());
  return std::llround(share * static_cast<double>(windows.num_windows()));
}

// The next windows of each replica that has any left.
std::map<int, MicroBatch> next_windows(std::map<int, ReplicaWindows>& replicas, Batch& batch,
                                       std::int64_t micro_batch) {
  std::map<int, MicroBatch> next;
  for (auto& [index, replica] : replicas) {
    if (replica.windows.next(batch, micro_batch)) {
      next[index] = replica.tensors->upload(batch, false);
    }
  }
  return next;
}

}  // namespace

EvaluationResult evaluate(const EvaluationSetting& setting,
                          const std::shared_ptr<const TokenStream>& stream, std::int64_t max_tokens,
                          ProgressBar* progress) {
  std::map<int, ReplicaWindows> replicas;
  for (const auto& [index, tensors] : setting.tensors) {
    replicas.emplace(index, ReplicaWindows{EvaluationWindows(stream, setting.sequence_length, index,
                                                             setting.num_replicas, max_tokens),
                                           tensors});
  }
  Batch batch;
  std::array<double, 2> sums{};
  while (true) {
    const std::map<int, MicroBatch> next = next_windows(replicas, batch, setting.micro_batch);
    if (next.empty()) break;
    const auto source = [&next](int replica, int) {
      const auto found = next.find(replica);
      return found == next.end() ? MicroBatch{} : found->second;
    };
    const PipelineResult result = setting.executor.evaluate(source, 1);
    sums[0] += result.loss_sum;
    sums[1] += static_cast<double>(result.num_targets);
    if (progress != nullptr) {
      progress->update(windows_of_job(replicas.begin()->second.windows),
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
