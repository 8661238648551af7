#include "app/step/hosted_model.h"

#include <algorithm>
#include <fmt/core.h>
#include <map>
#include <stdexcept>

#include "kernels/device/profile.h"

namespace chaski {

HostedModelOptions hosted_model_options(const TrainConfig& config, std::int64_t micro_batches) {
  HostedModelOptions options;
  options.model = config.model.llama;
  options.micro_batches = static_cast<int>(micro_batches);
  options.micro_batch = config.parallel.micro_batch;
  options.sequence_length = config.data.sequence_length;
  options.tokens_per_pass = config.device.tokens_per_pass;
  options.recompute = config.model.recompute;
  options.moc_index = config.model.moc_index();
  options.precision = precision_of(config);
  options.schedule = config.parallel.schedule;
  options.reducer.bucket_bytes = static_cast<std::int64_t>(config.parallel.bucket_mb * (1 << 20));
  options.optimizer = config.optimizer_options();
  return options;
}

void ListenerSwitch::gradients_ready(std::int64_t first, std::int64_t count) {
  if (target == nullptr) return;
  const ProfileScope scope(kReductionOp);
  target->gradients_ready(first, count);
}

HostedModel::HostedModel(Device& device, const HostedModelOptions& options)
    : device_(device), options_(options) {}

std::vector<int> HostedModel::adopt(const Membership& membership) {
  Communicator& communicator = membership.communicator();
  const Roster& roster = membership.roster();
  passes_ = passes_of(options_.micro_batch, options_.sequence_length, options_.tokens_per_pass,
                      roster.num_stages());
  // What belongs to the communicator before goes before anything of this one is made.
  executor_.reset();
  for (const auto& stage : stages_) stage->reducer.reset();

  std::map<int, std::vector<int>> replicas;  // by stage
  for (const Slot slot : roster.slots_of(membership.process())) {
    replicas[slot.stage].push_back(slot.replica);
  }
  if (replicas.empty()) {
    throw std::invalid_argument(
        fmt::format("process {} hosts no slot of the roster", membership.process()));
  }
  std::erase_if(stages_, [&](const auto& stage) { return !replicas.contains(stage->stage); });
  std::vector<HostedSlot> slots;
  std::vector<int> added;
  for (const auto& [stage, of_stage] : replicas) {
    if (!hosts(stage)) added.push_back(stage);
    HostedStage& hosted = host(membership, stage, of_stage);
    hosted.reducer =
        std::make_unique<GradientReducer>(communicator, roster.ranks_of_stage(stage), stage,
                                          hosted.model->parameters(), options_.reducer);
    for (const int replica : of_stage) {
      slots.push_back(
          {.slot = {replica, stage}, .stage = hosted.model.get(), .listener = &hosted.listener});
    }
  }
  executor_ = std::make_unique<PipelineExecutor>(communicator, roster, options_.schedule,
                                                 options_.micro_batches * passes_.count, slots);
  reduce_gradients(true);
  return added;
}

bool HostedModel::hosts(int stage) const {
  return std::any_of(stages_.begin(), stages_.end(),
                     [stage](const auto& hosted) { return hosted->stage == stage; });
}

HostedStage& HostedModel::host(const Membership& membership, int stage,
                               const std::vector<int>& replicas) {
  const Roster& roster = membership.roster();
  const int stashes = stashes_needed(options_.schedule, roster, membership.process(), stage,
                                     options_.micro_batches * passes_.count);
  auto place = std::find_if(stages_.begin(), stages_.end(),
                            [stage](const auto& hosted) { return hosted->stage >= stage; });
  if (place == stages_.end() || (*place)->stage != stage) {
    StageOptions options;
    options.micro_batch = passes_.rows;
    options.sequence_length = options_.sequence_length;
    options.recompute = options_.recompute;
    options.moc_index = options_.moc_index;
    options.precision = options_.precision;
    options.micro_batches_in_flight = stashes;
    auto hosted = std::make_unique<HostedStage>();
    hosted->stage = stage;
    hosted->model = std::make_unique<Stage>(
        device_, options_.model, stage_range(options_.model, stage, roster.num_stages()), options);
    hosted->optimizer = make_optimizer(device_, hosted->model->parameters(), options_.optimizer);
    place = stages_.insert(place, std::move(hosted));
  }
  (*place)->replicas = replicas;
  (*place)->model->set_micro_batches_in_flight(stashes);
  return **place;
}

void HostedModel::initialize(std::uint64_t seed) {
  for (const auto& stage : stages_) stage->model->initialize(seed);
}

void HostedModel::begin_step() {
  for (const auto& stage : stages_) {
    stage->model->parameters().zero_gradients();
    if (aborted_) stage->model->take_channel_use();
  }
  aborted_ = false;
}

void HostedModel::reduce_gradients(bool reduce) {
  for (const auto& stage : stages_) {
    stage->listener.target = reduce ? stage->reducer.get() : nullptr;
  }
}

void HostedModel::abort() noexcept {
  aborted_ = true;
  // They are missing where adopt() was interrupted.
  if (executor_ != nullptr) executor_->abort();
  for (const auto& stage : stages_) {
    if (stage->reducer != nullptr) stage->reducer->abort();
  }
}

}  // namespace chaski
