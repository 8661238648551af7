// How a TrainingRun comes to be: what is checked, opened, allocated and loaded before the first
// step.
#include <array>
#include <fmt/core.h>
#include <stdexcept>
#include <utility>

#include "app/config/stored_config.h"
#include "app/console/version.h"
#include "app/job/device_choice.h"
#include "app/job/job.h"
#include "app/plan/gemm_ceiling.h"
#include "app/plan/memory_check.h"
#include "app/training/run.h"
#include "app/training/start_report.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/saved_model.h"
#include "kernels/products/matmul.h"

namespace chaski {

TrainingRun::TrainingRun(Membership membership, const TrainConfig& config,
                         const TrainingOptions& options)
    : config_(config),
      options_(options),
      membership_(std::move(membership)),
      device_choice_(choose_job_device(config.device, communicator())),
      data_(config),
      outputs_(config_),
      micro_batches_(membership_.roster().num_micro_batches(config.parallel.global_batch,
                                                            config.parallel.micro_batch)),
      learning_rate_(config.learning_rate_schedule()) {
  check_memory();
  claim_output();
  create_device();
  create_model();
  load_checkpoint();
  outputs_.adopt(membership_.reports(), progress_.steps);
}

TrainingRun::~TrainingRun() = default;

void TrainingRun::check_memory() {
  // Of a GPU's memory is not known here what others have taken of it.
  if (device_choice_.backend != Backend::cpu) return;
  check_memory_of_run(
      config_, membership_, threads_for_process(communicator(), config_.run.threads),
      fmt::format(
          "a smaller parallel.micro_batch or data.sequence_length{} needs less; `chaski "
          "plan` shows what takes how much",
          config_.model.recompute == Recompute::block ? "" : ", or model.recompute = \"block\","));
}

void TrainingRun::claim_output() {
  checkpoint_ = run_on(membership_.reporter_rank(), communicator(), [this] {
    outputs_.lock();
    return choose_checkpoint(config_, options_.checkpoint);
  });
}

void TrainingRun::create_device() {
  const int threads = threads_for_process(communicator(), config_.run.threads);
  device_ = device_choice_.create(threads);
  device_lines_ =
      describe_job_devices(communicator(), membership_.reporter_rank(), *device_, device_choice_);
  if (config_.log.console == ConsoleMode::off) return;  // nobody sees the share of it
  // On a device of its own, which takes its operands away again.
  std::array<double, 1> total{measure_gemm_ceiling(*device_choice_.create(threads),
                                                   types_of(device_choice_.precision).compute)};
  communicator().all_reduce_sum(std::span<double>(total));
  gemm_ceiling_ = total[0];
}

void TrainingRun::create_model() {
  model_ = std::make_unique<HostedModel>(
      *device_, hosted_model_options(settle_device(config_, device_choice_), micro_batches_));
  LoaderOptions loader;
  loader.seed = static_cast<std::uint64_t>(config_.run.seed);
  loader.global_batch = config_.parallel.global_batch;
  loader.micro_batch = config_.parallel.micro_batch;
  loader.shuffle = config_.data.shuffle;
  loader.reset_at_documents = config_.data.reset_at_documents;
  loader.prefetch_depth = config_.data.prefetch;
  feed_ = std::make_unique<BatchFeed>(*device_, data_.training(), loader, micro_batches_);
  checkpoints_ = std::make_unique<RunCheckpoints>(config_, device_->num_threads());
  follow_membership();
}

void TrainingRun::adopt(Membership membership) {
  // A stage that goes may still be written.
  survive_failed_save([this] { checkpoints_->wait(); });
  report_saves();
  runner_.reset();
  // Until the model has let go of it.
  const Membership before = std::exchange(membership_, std::move(membership));
  do_together([this] {
    const std::vector<int> added = follow_membership();
    if (!added.empty()) {
      throw std::logic_error(
          fmt::format("stage {} comes to a process that has not its weights", added.front()));
    }
    adopt_outputs();
  });
}

// The lock of the output directory goes from one process to another where the reporter changes.
void TrainingRun::adopt_outputs() {
  if (!membership_.reports()) outputs_.adopt(false, progress_.steps);
  communicator().barrier();
  run_on(membership_.reporter_rank(), communicator(), [this] {
    outputs_.adopt(true, progress_.steps);
    data_.start_verification();
    return std::string();
  });
}

std::vector<int> TrainingRun::follow_membership() {
  std::vector<int> added = model_->adopt(membership_);
  runner_ = std::make_unique<StepRunner>(membership_, *model_, config_.optimizer.grad_clip);
  runner_->set_before_update([this] { checkpoints_->before_update(); });
  feed_->adopt(membership_);
  checkpoints_->adopt(membership_, *model_);
  return added;
}

void TrainingRun::check_model(const LlamaConfig& saved) const {
  const bool goes_on = options_.checkpoint.init_from.empty();
  for (const std::string& line :
       check_saved_model(checkpoint_, saved, config_.model.llama,
                         goes_on ? Beginning::resume : Beginning::new_run)) {
    if (membership_.reports()) fmt::print(stderr, "chaski: warning: {}\n", line);
  }
}

void TrainingRun::load_checkpoint() {
  if (checkpoint_.empty()) {
    model_->initialize(static_cast<std::uint64_t>(config_.run.seed));
    return;
  }
  const CheckpointReader reader(checkpoint_, Verification::sizes);
  const CheckpointMetadata& saved = reader.metadata();
  check_model(saved.model);
  if (!saved.tokenizer_fingerprint.empty()) {
    data_.check_tokenizer(saved.tokenizer_fingerprint, "the checkpoint " + checkpoint_);
  }
  const bool is_whole = membership_.roster().num_stages() == 1;
  const bool goes_on = options_.checkpoint.init_from.empty();
  for (const auto& stage : model_->stages()) {
    reader.read_weights(stage->model->parameters(), is_whole ? Extent::whole_model : Extent::stage);
    if (goes_on && reader.has_optimizer()) reader.read_optimizer(*stage->optimizer);
  }
  if (!goes_on) return;
  progress_ = {.steps = saved.step, .updates = saved.updates};
  saved_step_ = saved.step;
  if (!membership_.reports() || saved.config_toml.empty()) return;
  const std::string changed = changes_of_course(saved.config_toml, checkpoint_, config_);
  if (!changed.empty()) {
    fmt::print(stderr, "chaski: warning: the config differs from the checkpoint's in {}\n",
               changed);
  }
}

CheckpointMetadata TrainingRun::metadata() const {
  const TokenFileHeader& header = data_.stream().header();
  CheckpointMetadata result;
  result.step = progress_.steps;
  result.updates = progress_.updates;
  result.seed = static_cast<std::uint64_t>(config_.run.seed);
  result.tokens_seen = progress_.steps * tokens_per_step();
  result.config_toml = to_toml(config_, false);
  result.model = config_.model.llama;
  result.optimizer_name = model_->stages().front()->optimizer->name();
  const TensorTypes types = types_of(device_choice_.precision);
  result.precision = {{"weights", name_of(types.weights)},
                      {"gradients", name_of(types.gradients)},
                      {"moments", name_of(types.moments)},
                      {"activations", name_of(types.compute)}};
  result.tokenizer_fingerprint = header.tokenizer_fingerprint;
  result.tokenizer_model = header.tokenizer_model;
  result.versions["chaski"] = program_version();
  result.versions["commit"] = program_commit();
  result.versions["gemm"] = gemm_library(device_choice_.backend);
  result.versions["mpi"] = MpiRuntime::library_version();
  result.replicas = membership_.roster().num_replicas();
  result.stages = membership_.roster().num_stages();
  result.threads = device_->num_threads();
  return result;
}

void TrainingRun::print_start() const {
  if (!outputs_.shows()) return;
  chaski::print_start({.config = config_,
                       .membership = membership_,
                       .data = data_,
                       .device = *device_,
                       .choice = device_choice_,
                       .device_lines = device_lines_,
                       .gemm_ceiling = gemm_ceiling_,
                       .micro_batches = micro_batches_,
                       .checkpoint = checkpoint_,
                       .step = progress_.steps});
}

}  // namespace chaski
