#include "app/plan/memory.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "app/step/batch_tensors.h"
#include "fault/checkpoint/writer.h"
#include "kernels/device/host_reader.h"

namespace chaski {
namespace {

constexpr std::int64_t kToken = sizeof(std::int32_t);
// Tokens, targets and positions.
constexpr std::int64_t kArraysOfBatch = 3;
// The loader fills one more while it hands out another.
constexpr std::int64_t kExtraBatches = 2;
// The kernel maps this much of a cached file around an address that is touched for the first time.
constexpr std::int64_t kFaultAround = 64 << 10;

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

std::int64_t token_batches_of(const DryRun& dry) {
  const auto part = std::find_if(dry.parts.begin(), dry.parts.end(), [](const MemoryPart& part) {
    return std::strcmp(part.purpose, kTokenBatches) == 0;
  });
  return part == dry.parts.end() ? 0 : part->bytes;
}

// What decides what a process holds, whichever replicas it has: its stages, and which of them are
// of one replica.
std::vector<Slot> kind_of(const std::vector<Slot>& slots) {
  std::map<int, int> replicas;  // numbered as they come
  std::vector<Slot> kind;
  for (const Slot slot : slots) {
    const int number =
        replicas.emplace(slot.replica, static_cast<int>(replicas.size())).first->second;
    kind.push_back({number, slot.stage});
  }
  return kind;
}

RankMemory plan_rank(Device& model, const TrainConfig& config, const Roster& roster, int rank) {
  RankMemory memory;
  memory.on_gpu = is_on_gpu(config);
  memory.dry = dry_run(model, config, roster, rank);
  memory.token_batches = token_batches_of(memory.dry);
  std::set<int> replicas;
  for (const Slot slot : roster.slots_of(roster.process_at(rank))) replicas.insert(slot.replica);
  const std::int64_t batch =
      config.parallel.micro_batch * config.data.sequence_length * kToken * std::ssize(replicas);
  memory.prefetch = (config.data.prefetch + kExtraBatches) * kArraysOfBatch * batch;
  if (memory.on_gpu) {
    const std::int64_t arrays = kArraysOfBatch - (config.data.reset_at_documents ? 0 : 1);
    memory.pinned =
        roster.num_micro_batches(config.parallel.global_batch, config.parallel.micro_batch) *
        arrays * batch;
  }
  return memory;
}

bool writes_any(const Roster& roster, int process) {
  const std::vector<Slot> slots = roster.slots_of(process);
  return std::any_of(slots.begin(), slots.end(),
                     [&](Slot slot) { return roster.writer_of(slot.stage) == process; });
}

}  // namespace

std::int64_t RankMemory::device_bytes(MemoryCategory category) const {
  return dry.memory.current(category);
}

std::int64_t RankMemory::device_total() const {
  return dry.memory.total_current();
}

std::int64_t RankMemory::total() const {
  const std::int64_t host = prefetch + pinned + checkpoint_buffer + token_pages + process_base;
  return on_gpu ? host : host + device_total();
}

std::vector<RankMemory> plan_memory(Device& model, const TrainConfig& config, const Roster& roster,
                                    const PlanSurroundings& surroundings) {
  std::map<std::vector<Slot>, RankMemory> kinds;
  std::vector<RankMemory> ranks;
  for (const int process : roster.live_processes()) {
    const int rank = roster.rank_of(process);
    const std::vector<Slot> kind = kind_of(roster.slots_of(process));
    if (!kinds.contains(kind)) kinds.emplace(kind, plan_rank(model, config, roster, rank));
    RankMemory memory = kinds.at(kind);
    memory.rank = rank;
    memory.slots = roster.slots_of(process);
    if (writes_any(roster, process)) {
      memory.checkpoint_buffer = kTensorPieceBytes + kFilePieceBytes;
      if (memory.on_gpu) memory.pinned += kPinnedReaderBytes;
      if (config.checkpoint.async) memory.checkpoint_copy = memory.dry.saved_bytes;
    }
    memory.token_pages =
        touched_pages(config, roster.num_replicas(), surroundings.token_file_bytes);
    memory.process_base = surroundings.process_base;
    ranks.push_back(std::move(memory));
  }
  return ranks;
}

}  // namespace chaski
