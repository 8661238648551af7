#pragma once

#include <cstdint>
#include <vector>

#include "app/config/config.h"
#include "app/plan/memory.h"

namespace chaski {

// Floating-point operations of one kind and the memory traffic of everything else.
struct Work {
  double gemm_flops = 0.0;
  double channel_flops = 0.0;  // in products of MoC's kept channels alone (moc_products.h)
  double attention_forward_flops = 0.0;
  double attention_backward_flops = 0.0;
  double traffic_bytes = 0.0;  // read and written by what is bound by memory

  double product_flops() const { return gemm_flops + channel_flops; }
  double attention_flops() const { return attention_forward_flops + attention_backward_flops; }
  double flops() const { return product_flops() + attention_flops(); }
  Work& operator+=(const Work& other);
  Work operator*(double factor) const;
};

// What the process of a stage computes.
struct StageWork {
  Work forward;   // of a micro-batch; with the head also its backward pass
  Work backward;  // of a micro-batch
  Work update;    // of a step: gradients zeroed and measured, the optimizer

  Work of_step(std::int64_t micro_batches) const;
};
StageWork plan_work(const TrainConfig& config, const RankMemory& rank);

enum class LinkPurpose { gradients, pipeline };
const char* name_of(LinkPurpose purpose);

// What goes from one rank to another in a step.
struct Link {
  int from = 0;
  int to = 0;
  LinkPurpose purpose = LinkPurpose::gradients;
  std::int64_t bytes = 0;
};
// Every pair of ranks that exchange anything. Gradients: each replica of g owns a g-th of its
// stage's gradients; it gets the others' versions and sends them the sum. On GPUs: a ring, as NCCL
// would by default.
std::vector<Link> plan_links(const TrainConfig& config, const std::vector<RankMemory>& ranks);

}  // namespace chaski
