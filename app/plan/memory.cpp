#include "app/plan/memory.h"

#include <algorithm>

#include "model/precision.h"
#include "parallel/pipeline/schedule.h"

namespace chaski {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kToken = sizeof(std::int32_t);
// Tokens, targets and positions.
constexpr std::int64_t kArraysOfBatch = 3;
// The loader fills one more while it hands out another.
constexpr std::int64_t kExtraBatches = 2;
// A message's tensors on their way: parallel/pipeline/executor.cpp,
// parallel/reduction/segment_exchange.cpp.
constexpr std::int64_t kMessageBuffers = 2;
constexpr std::int64_t kWindow = 4;
// The kernel maps this much of a cached file around an address that is touched for the first time.
constexpr std::int64_t kFaultAround = 64 << 10;
// Of kernels/device/cuda_host_reader.cpp: what a save goes through.
constexpr std::int64_t kPinnedReader = std::int64_t{4} << 20;
// Of fault/checkpoint/shard_writer.cpp: what it reads a shard back with, and a piece of a tensor.
constexpr std::int64_t kCheckpointPiece = std::int64_t{5} << 20;

// Elements of one message of a gradient reduction among `group` processes.
std::int64_t segment_elements(std::int64_t group) {
  return std::clamp<std::int64_t>((std::int64_t{1} << 19) / group, 1 << 14, 1 << 18);
}

// NCCL adds where the gradients lie, with buffers of its own.
std::int64_t reduction_bytes(const TrainConfig& config, std::int64_t replicas) {
  if (replicas < 2 || is_on_gpu(config)) return 0;
  return charged_bytes((replicas - 1) * kWindow * segment_elements(replicas) * kFloat);
}

// Towards the stage before: activations in, gradients out; towards the next one, gradients in
// (activations leave from where they are).
std::int64_t pipeline_bytes(const TrainConfig& config, const StageRange& range) {
  const std::int64_t message = charged_bytes(
      config.parallel.micro_batch * config.data.sequence_length * config.model.llama.hidden_size *
      size_of(types_of(precision_of(config)).compute));
  const std::int64_t towards_previous = range.has_embedding ? 0 : 2;
  const std::int64_t towards_next = range.has_head ? 0 : 1;
  return (towards_previous + towards_next) * kMessageBuffers * message;
}

// Of one tensor for each parameter.
std::int64_t state_bytes(const StageMemory& stage, DType type) {
  std::int64_t bytes = 0;
  for (const std::int64_t elements : stage.parameters) {
    bytes += charged_bytes(elements * size_of(type));
  }
  return bytes;
}

// Rows lie anywhere in the files: each touches its own pages until the files are mapped whole, as
// they will be by steps whose number is not known.
std::int64_t touched_pages(const TrainConfig& config, std::int64_t replicas,
                           std::int64_t file_bytes) {
  if (config.schedule.steps == 0) return file_bytes;
  const auto rows = static_cast<double>(config.schedule.steps) *
                    static_cast<double>(config.parallel.global_batch / replicas);
  const double touched =
      rows * static_cast<double>(kFaultAround + config.data.sequence_length * kToken);
  return touched < static_cast<double>(file_bytes) ? static_cast<std::int64_t>(touched)
                                                   : file_bytes;
}

RankMemory plan_stage(Device& device, const TrainConfig& config, const RunLayout& layout,
                      int stage) {
  const ParallelConfig& parallel = config.parallel;
  StageOptions options;
  options.micro_batch = passes_of(config).rows;
  options.sequence_length = config.data.sequence_length;
  options.recompute = config.model.recompute;
  options.moc_index = config.model.moc_index();
  options.precision = precision_of(config);
  options.micro_batches_in_flight =
      max_in_flight(parallel.schedule, stage, static_cast<int>(layout.num_stages),
                    static_cast<int>(layout.micro_batches));
  RankMemory memory;
  memory.on_gpu = is_on_gpu(config);
  memory.range = stage_range(config.model.llama, stage, layout.num_stages);
  memory.stage = plan_stage_memory(device, config.model.llama, memory.range, options);
  memory.optimizer = 2 * state_bytes(memory.stage, types_of(options.precision).moments);
  const std::int64_t batch = parallel.micro_batch * config.data.sequence_length * kToken;
  memory.token_batches = layout.micro_batches * kArraysOfBatch * charged_bytes(batch);
  memory.prefetch = (config.data.prefetch + kExtraBatches) * kArraysOfBatch * batch;
  if (memory.on_gpu) {
    const std::int64_t arrays = kArraysOfBatch - (config.data.reset_at_documents ? 0 : 1);
    memory.pinned = layout.micro_batches * arrays * batch;
  }
  memory.communication =
      reduction_bytes(config, layout.num_replicas) + pipeline_bytes(config, memory.range);
  return memory;
}

}  // namespace

bool is_on_gpu(const TrainConfig& config) {
  return config.device.backend == BackendChoice::cuda;
}

Precision precision_of(const TrainConfig& config) {
  switch (config.device.precision) {
    case PrecisionChoice::automatic:
      return is_on_gpu(config) ? Precision::bf16 : Precision::fp32;
    case PrecisionChoice::bf16:
      return Precision::bf16;
    case PrecisionChoice::bf16_pure:
      return Precision::bf16_pure;
    default:
      return Precision::fp32;
  }
}

std::int64_t RankMemory::device_bytes(MemoryCategory category) const {
  switch (category) {
    case MemoryCategory::optimizer:
      return optimizer;
    case MemoryCategory::communication:
      return communication;
    case MemoryCategory::activations:
      return stage.bytes(category) + token_batches;
    default:
      return stage.bytes(category);
  }
}

std::int64_t RankMemory::device_total() const {
  std::int64_t total = 0;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    total += device_bytes(static_cast<MemoryCategory>(i));
  }
  return total;
}

std::int64_t RankMemory::total() const {
  const std::int64_t host = prefetch + pinned + checkpoint_buffer + token_pages + process_base;
  return on_gpu ? host : host + device_total();
}

std::vector<RankMemory> plan_memory(Device& device, const TrainConfig& config, int num_processes,
                                    const PlanSurroundings& surroundings) {
  const RunLayout layout = resolve_layout(config, num_processes);
  const Roster roster = Roster::initial(static_cast<int>(layout.num_replicas),
                                        static_cast<int>(layout.num_stages), num_processes);
  std::vector<RankMemory> stages;
  for (int stage = 0; stage < layout.num_stages; ++stage) {
    stages.push_back(plan_stage(device, config, layout, stage));
  }
  std::vector<RankMemory> ranks;
  for (int rank = 0; rank < num_processes; ++rank) {
    const Slot slot = roster.slots_of(roster.process_at(rank)).front();
    RankMemory memory = stages[static_cast<std::size_t>(slot.stage)];
    memory.rank = rank;
    memory.slot = slot;
    if (slot.replica == 0) {
      memory.checkpoint_buffer = kCheckpointPiece;
      if (memory.on_gpu) memory.pinned += kPinnedReader;
      if (config.checkpoint.async) {
        const TensorTypes types = types_of(precision_of(config));
        memory.checkpoint_copy =
            state_bytes(memory.stage, types.weights) + 2 * state_bytes(memory.stage, types.moments);
      }
    }
    memory.token_pages = touched_pages(config, layout.num_replicas, surroundings.token_file_bytes);
    memory.process_base = surroundings.process_base;
    ranks.push_back(std::move(memory));
  }
  return ranks;
}

}  // namespace chaski
