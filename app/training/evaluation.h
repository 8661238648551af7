#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "app/console/progress_bar.h"
#include "app/step/batch_tensors.h"
#include "data/evaluation_windows.h"
#include "data/sequence_dataset.h"
#include "parallel/mpi/communicator.h"
#include "parallel/pipeline/executor.h"

namespace chaski {

struct EvaluationResult {
  double loss_sum = 0.0;    // nats, over all targets
  std::int64_t tokens = 0;  // targets

  double loss() const { return loss_sum / static_cast<double>(tokens); }  // nats per token
  double perplexity() const;
  // `tokens_per_byte`: of the text that the targets stand for.
  double bits_per_byte(double tokens_per_byte) const;
};

// What an evaluation runs on; all of the job's processes take part, sharing the windows out over
// the replicas.
struct EvaluationSetting {
  Communicator& communicator;
  PipelineExecutor& executor;
  int num_replicas;
  std::map<int, BatchTensors*> tensors;  // of each replica that this process hosts
  std::int64_t micro_batch;
  std::int64_t sequence_length;
};

// Token-weighted loss of the stream's first `max_tokens` targets, rounded up to whole windows (0:
// all). The result is the same on every process. `progress` counts the windows of the
// whole job and may be null.
EvaluationResult evaluate(const EvaluationSetting& setting,
                          const std::shared_ptr<const TokenStream>& stream, std::int64_t max_tokens,
                          ProgressBar* progress);

// Tokens per byte of a stream: EOS counts as a token and not as a byte.
double tokens_per_byte(const TokenStream& stream);

}  // namespace chaski
