#include "app/config/checks.h"

#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <stdexcept>
#include <string>
#include <system_error>

#include "app/config/input_files.h"

namespace chaski {
namespace {

[[noreturn]] void fail(const std::string& message, const std::string& hint) {
  throw std::invalid_argument(message + "\nhint: " + hint);
}

void check_run(const RunConfig& run) {
  if (run.name.empty() || run.name.find('/') != std::string::npos) {
    fail(fmt::format("run.name is \"{}\" but must be a name without '/'", run.name),
         "run.output sets the directory");
  }
}

void check_data(const TrainConfig& config) {
  const DataConfig& data = config.data;
  if (data.train.empty()) {
    fail("data.train is missing: a run needs token files",
         "chaski tokenize makes them; name them as data.train = [\"FILE.h5\"] or with --set "
         "data.train=FILE.h5");
  }
  for (const auto* paths : {&data.train, &data.validation}) {
    for (const std::string& path : *paths) {
      if (!path.empty()) continue;
      fail(fmt::format("{} has an empty path",
                       paths == &data.train ? "data.train" : "data.validation"),
           "give the path of a token file");
    }
  }
  if (data.sequence_length > config.model.llama.max_position_embeddings) {
    fail(fmt::format("data.sequence_length is {} but must be at most "
                     "model.max_position_embeddings, which is {}",
                     data.sequence_length, config.model.llama.max_position_embeddings),
         "lower the one or raise the other");
  }
}

void check_schedule(const ScheduleConfig& schedule) {
  if (schedule.warmup_steps > schedule.steps) {
    fail(fmt::format("schedule.warmup_steps is {} but must be at most schedule.steps, which is {}",
                     schedule.warmup_steps, schedule.steps),
         "set schedule.warmup_steps too; without it, it is a tenth of the steps");
  }
  if (schedule.kind != DecayKind::warmup_stable_decay && schedule.decay_steps > 0) {
    fail(fmt::format("schedule.decay_steps is {} but must be 0 with schedule.kind = \"{}\"",
                     schedule.decay_steps, name_of(schedule.kind)),
         "only kind = \"wsd\" has a decay phase of its own");
  }
  if (schedule.decay_steps > schedule.steps - schedule.warmup_steps) {
    fail(fmt::format("schedule.decay_steps is {} but only {} steps remain after the warm-up",
                     schedule.decay_steps, schedule.steps - schedule.warmup_steps),
         "warmup_steps + decay_steps must be at most steps");
  }
}

void check_pipeline(const ParallelConfig& parallel, const LlamaConfig& model) {
  if (parallel.pipeline > model.num_layers) {
    fail(fmt::format("parallel.pipeline is {} but the model has only {} layers to split",
                     parallel.pipeline, model.num_layers),
         fmt::format("use at most {} stages", model.num_layers));
  }
  if (parallel.pipeline > 1 && model.tie_embeddings) {
    fail(fmt::format("parallel.pipeline is {} but must be 1 with model.tie_embeddings = true: the "
                     "embedding and the head, on different stages, would have to be one",
                     parallel.pipeline),
         "untie them, or use parallel.data alone");
  }
}

// Rows of a step in whole micro-batches for each of so many replicas.
void check_batch(const ParallelConfig& parallel, std::int64_t replicas) {
  const std::int64_t rows = parallel.micro_batch * replicas;
  if (parallel.global_batch % rows == 0) return;
  const std::int64_t above = (parallel.global_batch / rows + 1) * rows;
  fail(fmt::format("parallel.global_batch is {} but must be a multiple of micro_batch × "
                   "replicas = {} × {} = {}",
                   parallel.global_batch, parallel.micro_batch, replicas, rows),
       parallel.global_batch % replicas == 0
           ? fmt::format("for example parallel.micro_batch = {} or parallel.global_batch = {}",
                         parallel.global_batch / replicas, above)
           : fmt::format("for example parallel.global_batch = {}", above));
}

void check_fault(const FaultConfig& fault) {
  if (!fault.tolerate) return;
  fail(
      "fault.tolerate is true but must be false: going on after the death of a process is not "
      "built",
      "a run that loses a process ends; `chaski train CONFIG --resume auto` goes on from its last "
      "checkpoint");
}

// What the machine has is another matter (choose_device).
void check_device(const DeviceConfig& device) {
  if (device.stochastic_rounding && device.precision != PrecisionChoice::bf16_pure) {
    fail("device.stochastic_rounding is true but device.precision is not \"bf16-pure\"",
         "only weights that are kept in bf16 are rounded");
  }
}

}  // namespace

void check_config(const TrainConfig& config) {
  check_run(config.run);
  check_data(config);
  if (config.schedule.steps > 0) {  // else a plan is made before their number is known
    check_schedule(config.schedule);
    config.learning_rate_schedule().validate();
  }
  check_pipeline(config.parallel, config.model.llama);
  check_batch(config.parallel, std::max<std::int64_t>(config.parallel.data, 1));
  check_fault(config.fault);
  check_device(config.device);
}

Passes passes_of(std::int64_t micro_batch, std::int64_t sequence_length,
                 std::int64_t tokens_per_pass, std::int64_t num_stages) {
  if (num_stages > 1 || tokens_per_pass == 0) return {micro_batch, 1};
  const std::int64_t most =
      std::clamp<std::int64_t>(tokens_per_pass / sequence_length, 1, micro_batch);
  const std::int64_t count = (micro_batch + most - 1) / most;
  return {(micro_batch + count - 1) / count, static_cast<int>(count)};
}

Passes passes_of(const TrainConfig& config) {
  return passes_of(config.parallel.micro_batch, config.data.sequence_length,
                   config.device.tokens_per_pass, config.parallel.pipeline);
}

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

RunLayout resolve_layout(const TrainConfig& config, std::int64_t num_processes) {
  const ParallelConfig& parallel = config.parallel;
  RunLayout layout;
  layout.num_stages = parallel.pipeline;
  layout.num_replicas = parallel.data > 0 ? parallel.data : num_processes / parallel.pipeline;
  const std::int64_t needed = std::max<std::int64_t>(layout.num_replicas, 1) * layout.num_stages;
  if (needed != num_processes) {
    const std::string key = parallel.data > 0 ? "parallel.data" : "parallel.pipeline";
    fail(fmt::format("{} is {} but {} {} started: data × pipeline = {} × {} needs {}", key,
                     parallel.data > 0 ? parallel.data : parallel.pipeline, num_processes,
                     num_processes == 1 ? "process was" : "processes were",
                     std::max<std::int64_t>(layout.num_replicas, 1), layout.num_stages, needed),
         fmt::format("start it with mpirun -n {}, or set {}", needed,
                     parallel.data > 0 ? "parallel.data = 0 to use as many as there are"
                                       : "a pipeline that divides the processes"));
  }
  check_batch(parallel, layout.num_replicas);
  layout.micro_batches = parallel.global_batch / (parallel.micro_batch * layout.num_replicas);
  return layout;
}

RunFiles resolve_files(const TrainConfig& config) {
  RunFiles files;
  files.train = resolve_input_files("data.train", config.data.train);
  files.validation = resolve_input_files("data.validation", config.data.validation);
  if (!config.data.tokenizer.empty()) {
    check_input_file("data.tokenizer", config.data.tokenizer);
  }
  std::error_code error;
  const std::filesystem::path output = config.run.output;
  if (std::filesystem::exists(output, error) && !std::filesystem::is_directory(output, error)) {
    fail(fmt::format("run.output is {}, which is a file", output.string()),
         "give a directory; it is made where it does not exist");
  }
  return files;
}

std::optional<MocIndex> ModelConfig::moc_index() const {
  switch (moc.index) {
    case MocIndexChoice::uint16:
      return MocIndex::uint16;
    case MocIndexChoice::bitmap:
      return MocIndex::bitmap;
    default:
      return std::nullopt;
  }
}

OptimizerOptions TrainConfig::optimizer_options() const {
  switch (optimizer.name) {
    case OptimizerKind::adamw:
      return AdamWOptions{.beta1 = optimizer.betas[0],
                          .beta2 = optimizer.betas[1],
                          .epsilon = optimizer.epsilon,
                          .weight_decay = optimizer.weight_decay,
                          .stochastic_rounding = device.stochastic_rounding,
                          .seed = static_cast<std::uint64_t>(run.seed)};
  }
  throw std::logic_error("an optimizer of no known kind");
}

LearningRateSchedule TrainConfig::learning_rate_schedule() const {
  return {.kind = schedule.kind,
          .peak = optimizer.lr,
          .steps = schedule.steps,
          .warmup_steps = schedule.warmup_steps,
          .decay_steps = schedule.decay_steps,
          .min_lr_ratio = schedule.min_lr_ratio};
}

std::filesystem::path TrainConfig::checkpoint_directory() const {
  return std::filesystem::path(run.output) / "checkpoints";
}

std::filesystem::path TrainConfig::metrics_path() const {
  if (log.jsonl.empty()) return {};
  return std::filesystem::path(run.output) / log.jsonl;
}

}  // namespace chaski
