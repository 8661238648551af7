// How a TrainingRun comes to be: what is checked, opened, allocated and loaded before the first
// step.
#include <array>
#include <filesystem>
#include <fmt/core.h>
#include <stdexcept>

#include "app/config/stored_config.h"
#include "app/console/human_format.h"
#include "app/job/devices.h"
#include "app/job/job.h"
#include "app/plan/gemm_ceiling.h"
#include "app/plan/memory_check.h"
#include "app/training/run.h"
#include "app/version.h"
#include "data/tokenizer.h"
#include "fault/checkpoint/directory.h"
#include "fault/checkpoint/file_system.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/saved_model.h"
#include "kernels/attention/attention.h"
#include "kernels/products/matmul.h"

namespace chaski {
namespace {

std::string output_directory(const TrainConfig& config) {
  return config.run.output;
}

std::unique_ptr<OutputLock> lock_output(const TrainConfig& config) {
  try {
    return std::make_unique<OutputLock>(output_directory(config));
  } catch (const FileError& error) {
    throw std::runtime_error(
        fmt::format("{}\nhint: run.output = \"{}\" must be a folder that can "
                    "be written",
                    error.what(), output_directory(config)));
  }
}

void check_vocabulary(const TokenStream& stream, const LlamaConfig& model) {
  if (stream.vocab_size() > static_cast<std::uint64_t>(model.vocab_size)) {
    throw std::invalid_argument(
        fmt::format("{}: its tokenizer has {} tokens, more than model.vocab_size = {}\n"
                    "hint: set model.vocab_size = {}",
                    stream.files().front()->path(), stream.vocab_size(), model.vocab_size,
                    stream.vocab_size()));
  }
}

void check_tokenizer(const TokenStream& stream, const std::string& expected,
                     const std::string& whose) {
  if (stream.fingerprint() == expected) return;
  throw std::invalid_argument(
      fmt::format("{} was made with tokenizer {}, but {} has {}\nhint: run `chaski tokenize` again "
                  "with the tokenizer that the model was trained with",
                  stream.files().front()->path(), stream.fingerprint(), whose, expected));
}

// What is there already, category by category.
std::string describe_memory(const MemoryUsage& memory) {
  std::string text;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    const std::int64_t bytes = memory.current(category);
    if (bytes == 0) continue;
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ", name_of(category), format_bytes(bytes));
  }
  return text;
}

bool has_validation_part(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (!TokenFile::open(path)->has_part(Part::validation)) return false;
  }
  return true;
}

}  // namespace

TrainingRun::TrainingRun(MpiRuntime& runtime, const TrainConfig& config,
                         const TrainingOptions& options)
    : communicator_(runtime),
      config_(config),
      options_(options),
      layout_(resolve_layout(config, communicator_.size())),
      files_(resolve_files(config)),
      device_choice_(choose_job_device(config.device, communicator_)),
      schedule_(config.learning_rate_schedule()) {
  open_data();
  check_memory();
  claim_output();
  create_model();
  load_checkpoint();
  open_outputs();
}

TrainingRun::~TrainingRun() = default;

void TrainingRun::open_data() {
  training_data_ = SequenceDataset::open(files_.train, Part::train, config_.data.sequence_length);
  const TokenStream& stream = training_data_->stream();
  check_vocabulary(stream, config_.model.llama);
  if (!config_.data.tokenizer.empty()) {
    check_tokenizer(stream, Tokenizer::load(config_.data.tokenizer)->fingerprint(),
                    "data.tokenizer = " + config_.data.tokenizer);
  }
  const std::vector<std::string>& validation =
      files_.validation.empty() ? files_.train : files_.validation;
  if (has_validation_part(validation)) {
    validation_data_ = TokenStream::open(validation, Part::validation);
  } else if (!files_.validation.empty()) {
    // Files named for validation that were made without a split are used whole.
    validation_data_ = TokenStream::open(validation, Part::train);
  }
  if (validation_data_ != nullptr) {
    check_tokenizer(*validation_data_, stream.fingerprint(), files_.train.front());
  }
}

void TrainingRun::check_memory() {
  // Of a GPU's memory is not known here what others have taken of it.
  if (device_choice_.backend != Backend::cpu) return;
  check_memory_of_run(
      config_, communicator_, threads_for_process(communicator_, config_.run.threads),
      fmt::format(
          "a smaller parallel.micro_batch or data.sequence_length{} needs less; `chaski "
          "plan` shows what takes how much",
          config_.model.recompute == Recompute::block ? "" : ", or model.recompute = \"block\","));
}

// Decides what to begin from, on rank 0 alone: it owns the output directory.
void TrainingRun::claim_output() {
  checkpoint_ = run_on_root(communicator_, [this]() -> std::string {
    lock_ = lock_output(config_);
    const std::string directory = config_.checkpoint_directory().string();
    for (const std::string& name : clean_up_checkpoints(directory)) {
      fmt::print(stderr, "chaski: warning: removed {}/{}, which an interrupted save left behind\n",
                 directory, name);
    }
    if (options_.resume.empty()) {
      if (!find_checkpoints(directory).complete.empty()) {
        throw std::invalid_argument(fmt::format(
            "{} holds checkpoints of an earlier run\nhint: go on with --resume auto, or name "
            "another directory by --set run.output=...",
            directory));
      }
      return options_.init_from.empty()
                 ? ""
                 : find_checkpoint(options_.init_from, Verification::checksums).path;
    }
    const ResolvedCheckpoint resolved = resolve_checkpoint(directory, options_.resume);
    for (const SkippedCheckpoint& skipped : resolved.skipped) {
      fmt::print(stderr, "chaski: warning: skipped {}: {}\n", skipped.path, skipped.reason);
    }
    if (!resolved.checkpoint && !resolved.skipped.empty()) {
      throw std::runtime_error(
          fmt::format("{} holds checkpoints, but none is intact\nhint: name another checkpoint by "
                      "--resume PATH, "
                      "or another directory by --set run.output=... to begin anew",
                      directory));
    }
    return resolved.checkpoint ? resolved.checkpoint->path : "";
  });
}

void TrainingRun::create_model() {
  const int threads = threads_for_process(communicator_, config_.run.threads);
  device_ = device_choice_.create(threads);
  device_lines_ = describe_job_devices(communicator_, *device_, device_choice_);
  // On a device of its own, which takes its operands away again.
  gemm_ceiling_ = measure_gemm_ceiling(*device_choice_.create(threads),
                                       types_of(device_choice_.precision).compute);
  std::array<double, 1> total{gemm_ceiling_};
  communicator_.all_reduce_sum(std::span<double>(total));
  gemm_ceiling_ = total[0];

  StepEngineOptions options;
  options.model = config_.model.llama;
  options.num_replicas = static_cast<int>(layout_.num_replicas);
  options.num_stages = static_cast<int>(layout_.num_stages);
  options.micro_batches = static_cast<int>(layout_.micro_batches);
  options.micro_batch = config_.parallel.micro_batch;
  options.sequence_length = config_.data.sequence_length;
  options.tokens_per_pass =
      device_choice_.backend == Backend::cpu ? config_.device.tokens_per_pass : 0;
  options.recompute = config_.model.recompute;
  options.moc_index = config_.model.moc_index();
  options.precision = device_choice_.precision;
  options.schedule = config_.parallel.schedule;
  options.reducer.bucket_bytes = static_cast<std::int64_t>(config_.parallel.bucket_mb * (1 << 20));
  options.optimizer = config_.optimizer_options();
  options.gradient_clip = config_.optimizer.grad_clip;
  engine_ = std::make_unique<StepEngine>(communicator_, *device_, options);

  const RowRange rows =
      engine_->roster().rows_of(engine_->slot().replica, config_.parallel.global_batch);
  LoaderOptions loader;
  loader.seed = static_cast<std::uint64_t>(config_.run.seed);
  loader.global_batch = config_.parallel.global_batch;
  loader.micro_batch = config_.parallel.micro_batch;
  loader.first_row = rows.begin;
  loader.num_rows = rows.count;
  loader.shuffle = config_.data.shuffle;
  loader.reset_at_documents = config_.data.reset_at_documents;
  loader.prefetch_depth = config_.data.prefetch;
  loader_ = std::make_unique<Loader>(training_data_, loader);
  for (std::int64_t i = 0; i < layout_.micro_batches; ++i) {
    batches_.emplace_back(*device_, config_.parallel.micro_batch, config_.data.sequence_length);
  }
}

void TrainingRun::check_model(const LlamaConfig& saved) const {
  const Beginning beginning = options_.init_from.empty() ? Beginning::resume : Beginning::new_run;
  for (const std::string& line :
       check_saved_model(checkpoint_, saved, config_.model.llama, beginning)) {
    if (is_root()) fmt::print(stderr, "chaski: warning: {}\n", line);
  }
}

void TrainingRun::load_checkpoint() {
  if (checkpoint_.empty()) {
    engine_->stage().initialize(static_cast<std::uint64_t>(config_.run.seed));
    return;
  }
  const CheckpointReader reader(checkpoint_, Verification::sizes);
  const CheckpointMetadata& saved = reader.metadata();
  check_model(saved.model);
  if (!saved.tokenizer_fingerprint.empty()) {
    check_tokenizer(training_data_->stream(), saved.tokenizer_fingerprint,
                    "the checkpoint " + checkpoint_);
  }
  reader.read_weights(engine_->stage().parameters(),
                      layout_.num_stages == 1 ? Extent::whole_model : Extent::stage);
  if (!options_.init_from.empty()) return;
  if (reader.has_optimizer()) reader.read_optimizer(engine_->optimizer());
  engine_->set_updates(saved.updates);
  first_step_ = saved.step;
  saved_step_ = saved.step;
  if (is_root() && !saved.config_toml.empty()) {
    const std::string changed = changes_of_course(saved.config_toml, checkpoint_, config_);
    if (!changed.empty()) {
      fmt::print(stderr, "chaski: warning: the config differs from the checkpoint's in {}\n",
                 changed);
    }
  }
}

void TrainingRun::open_outputs() {
  if (config_.model.llama.moc) {
    channels_.emplace(config_.model.llama, first_step_, config_.log.dead_channel_steps);
  }
  const std::filesystem::path output = output_directory(config_);
  if (is_root()) {
    console_ = std::make_unique<StepConsole>(config_.log.console);
    if (!config_.metrics_path().empty()) {
      metrics_ = std::make_unique<MetricsLog>(config_.metrics_path(), first_step_);
    }
    write_file_atomically(posix_file_system(), (output / "config.toml").string(), to_toml(config_));
  }
  if (engine_->slot().replica == 0) {
    CheckpointWriterOptions options;
    options.keep = config_.checkpoint.keep;
    options.keep_every = config_.checkpoint.keep_every;
    options.async = config_.checkpoint.async;
    options.copy_threads = device_->num_threads();
    options.shard = engine_->slot().stage;
    options.num_shards = static_cast<int>(layout_.num_stages);
    writer_ = std::make_unique<CheckpointWriter>(config_.checkpoint_directory().string(), options);
    engine_->set_before_update([this] { writer_->before_update(); });
  }
}

CheckpointMetadata TrainingRun::metadata(std::int64_t updates) const {
  const TokenFileHeader& header = training_data_->stream().header();
  CheckpointMetadata result;
  result.step = updates;
  result.updates = engine_->updates();
  result.seed = static_cast<std::uint64_t>(config_.run.seed);
  result.tokens_seen = updates * tokens_per_step();
  result.config_toml = to_toml(config_, false);
  result.model = config_.model.llama;
  result.optimizer_name = engine_->optimizer().name();
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
  result.replicas = layout_.num_replicas;
  result.stages = layout_.num_stages;
  result.threads = device_->num_threads();
  return result;
}

void TrainingRun::print_start() const {
  const LlamaConfig& model = config_.model.llama;
  const auto line = [](const char* name, const std::string& value) {
    fmt::print("{:<12}{}\n", name, value);
  };
  line("chaski", fmt::format("{} ({})", program_version(), program_commit()));
  for (const std::string& device : device_lines_) line("device", device);
  if (device_choice_.backend == Backend::cuda) {
    const AttentionShape shape{config_.parallel.micro_batch, config_.data.sequence_length,
                               model.num_heads, model.num_kv_heads, model.head_dim};
    line("attention",
         attention_implementation(*device_, shape, types_of(device_choice_.precision).compute,
                                  config_.data.reset_at_documents));
  }
  line("GEMM", fmt::format("{:.0f} GFLOP/s measured, all processes together", gemm_ceiling_));
  line("MPI", communicator_.runtime().description());
  line("layout",
       fmt::format("{} x {}; {} of {} x {} tokens each",
                   format_number_of(layout_.num_replicas, "replica"),
                   format_number_of(layout_.num_stages, "stage"),
                   format_number_of(layout_.micro_batches, "micro-batch", "micro-batches"),
                   config_.parallel.micro_batch, config_.data.sequence_length));
  line("precision", describe_precision(device_choice_));
  line("model",
       fmt::format("{} parameters: {}, hidden {}, {}, heads {}/{} of {}, vocabulary {}{}",
                   format_count(static_cast<double>(model.num_parameters())),
                   format_number_of(model.num_layers, "layer"), model.hidden_size,
                   model.describe_ffn(), model.num_heads, model.num_kv_heads, model.head_dim,
                   model.vocab_size, model.tie_embeddings ? ", tied head" : ""));
  const TokenStream& stream = training_data_->stream();
  line("data",
       fmt::format(
           "{} tokens in {}; {}, {:.2f} epochs in the schedule",
           format_count(static_cast<double>(stream.num_tokens())),
           format_number_of(static_cast<std::int64_t>(stream.num_documents()), "document"),
           format_number_of(static_cast<std::int64_t>(training_data_->num_sequences()), "sequence"),
           static_cast<double>(config_.schedule.steps) *
               static_cast<double>(config_.parallel.global_batch) /
               static_cast<double>(training_data_->num_sequences())));
  line("memory", describe_memory(device_->memory()));
  line("output", output_directory(config_));
  if (!checkpoint_.empty()) {
    line("from", fmt::format("{}, step {}", checkpoint_, first_step_));
  }
  if (validation_data_ == nullptr) {
    line("validation", "none: the token files have no validation part");
  }
  std::fflush(stdout);
}

}  // namespace chaski
