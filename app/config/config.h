#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/stage.h"
#include "optim/factory.h"
#include "optim/learning_rate.h"
#include "parallel/pipeline/schedule.h"

namespace chaski {

// What a training run is told by its TOML file; one struct a table, one member a key. Meanings,
// ranges and documentation of the keys: app/config/schema.cpp, from which docs/config.md is made.

// What to do with a step whose loss or gradient is NaN or infinite.
enum class NonfinitePolicy { skip, stop };

struct RunConfig {
  std::string name = "run";
  std::string output;  // directory; runs/<name> once resolved
  std::int64_t seed = 1;
  std::int64_t threads = 0;  // of this process; 0: its share of the machine's cores
  NonfinitePolicy nonfinite = NonfinitePolicy::skip;
  std::int64_t max_skipped_steps = 10;  // in a row, before a skipping run stops all the same
  std::int64_t check_replicas = 1000;   // steps between two comparisons of replicas; 0: none

  bool operator==(const RunConfig&) const = default;
};

enum class FeedForwardKind { swiglu, moc };

// A number of things, or a share of all there are.
struct CountOrRatio {
  std::int64_t count = 0;
  double ratio = 0.0;  // 0: the count is meant

  bool operator==(const CountOrRatio&) const = default;
};

enum class MocIndexChoice { automatic, uint16, bitmap };

// [model.moc]
struct MocTable {
  CountOrRatio keep;  // a count once resolved
  MocPattern pattern = MocPattern::topk;
  MocScore selection = MocScore::gate;
  MocIndexChoice index = MocIndexChoice::automatic;

  bool operator==(const MocTable&) const = default;
};

struct ModelConfig {
  std::string preset;  // empty: the shape is given key by key
  LlamaConfig llama;   // resolved; its moc follows from `ffn` and `moc`
  FeedForwardKind ffn = FeedForwardKind::swiglu;
  MocTable moc;
  Recompute recompute = Recompute::elementwise;

  std::optional<MocIndex> moc_index() const;

  bool operator==(const ModelConfig&) const = default;
};

struct DataConfig {
  std::vector<std::string> train;       // token files; paths or globs
  std::vector<std::string> validation;  // empty: the validation parts of the train files
  std::string tokenizer;                // empty: whichever the token files were made with
  std::int64_t sequence_length = 256;   // inputs of a row
  bool reset_at_documents = false;
  bool shuffle = true;
  std::int64_t prefetch = 4;  // micro-batches read ahead

  bool operator==(const DataConfig&) const = default;
};

enum class OptimizerKind { adamw };

// What all kinds share. A kind's own keys get a table of their own here, as MocTable is in
// ModelConfig; TrainConfig::optimizer_options() makes that kind's options of both.
struct OptimizerConfig {
  OptimizerKind name = OptimizerKind::adamw;
  double lr = 1e-3;  // the schedule's peak
  std::array<double, 2> betas{0.9, 0.95};
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double grad_clip = 1.0;  // largest global L2 norm of the gradient; 0: no clipping

  bool operator==(const OptimizerConfig&) const = default;
};

struct ScheduleConfig {
  DecayKind kind = DecayKind::cosine;
  std::int64_t steps = 0;         // of the whole run; required but for a plan, where 0: not known
  std::int64_t warmup_steps = 0;  // a tenth of `steps` once resolved, unless given
  std::int64_t decay_steps = 0;   // "wsd" only: a fifth of `steps` once resolved, unless given
  double min_lr_ratio = 0.1;

  bool operator==(const ScheduleConfig&) const = default;
};

struct ParallelConfig {
  std::int64_t data = 0;          // replicas; 0: as many as the processes allow
  std::int64_t pipeline = 1;      // stages of a replica
  std::int64_t micro_batch = 8;   // rows
  std::int64_t global_batch = 8;  // rows of a step, over all replicas and micro-batches
  ScheduleKind schedule = ScheduleKind::one_f_one_b;
  double bucket_mb = 8.0;  // MiB of gradients reduced in one message

  bool operator==(const ParallelConfig&) const = default;
};

struct FaultConfig {
  bool tolerate = false;

  bool operator==(const FaultConfig&) const = default;
};

struct EvaluationConfig {
  std::int64_t every = 500;     // steps; 0: only at the end
  std::int64_t tokens = 65536;  // of the validation data, from its beginning; 0: all of it

  bool operator==(const EvaluationConfig&) const = default;
};

struct CheckpointConfig {
  std::int64_t every = 1000;    // steps; 0: only at the end (and on SIGTERM or SIGINT)
  std::int64_t keep = 2;        // newest ones kept; 0: all
  std::int64_t keep_every = 0;  // steps: checkpoints at multiples are never deleted; 0: none such
  bool async = true;

  bool operator==(const CheckpointConfig&) const = default;
};

enum class ConsoleMode { automatic, plain, off };

struct LogConfig {
  std::int64_t every = 10;              // steps between two lines on the console
  std::string jsonl = "metrics.jsonl";  // relative to the output directory; empty: not written
  ConsoleMode console = ConsoleMode::automatic;
  std::int64_t dead_channel_steps = 100;

  bool operator==(const LogConfig&) const = default;
};

enum class BackendChoice { automatic, cpu, cuda };
enum class PrecisionChoice { automatic, fp32, tf32, bf16, bf16_pure };

inline constexpr std::int64_t kTokensPerPass = 512;

struct DeviceConfig {
  BackendChoice backend = BackendChoice::automatic;
  PrecisionChoice precision = PrecisionChoice::automatic;
  bool stochastic_rounding = false;
  bool graphs = true;
  std::int64_t tokens_per_pass = kTokensPerPass;

  bool operator==(const DeviceConfig&) const = default;
};

struct TrainConfig {
  RunConfig run;
  ModelConfig model;
  DataConfig data;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  ParallelConfig parallel;
  FaultConfig fault;
  EvaluationConfig evaluation;
  CheckpointConfig checkpoint;
  LogConfig log;
  DeviceConfig device;

  OptimizerOptions optimizer_options() const;
  LearningRateSchedule learning_rate_schedule() const;
  std::filesystem::path checkpoint_directory() const;  // <output>/checkpoints
  std::filesystem::path metrics_path() const;          // empty: no metrics file is wanted

  bool operator==(const TrainConfig&) const = default;
};

// Whether schedule.steps must be given. A run needs it; a plan can be made before it is known.
enum class StepsAre { required, optional };

// Reads, resolves and checks a config. `overrides` are "table.key=value" as given to --set, applied
// over the file in their order with the same checks; a value is TOML, or else taken as a string.
// Throws std::invalid_argument: "<file>:<line>: …" (or "--set …: …") and a hint.
// Everything is checked but what depends on the number of processes (resolve_layout) and on other
// files (resolve_files).
TrainConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {},
                        StepsAre steps = StepsAre::required);
// The same from text; `source` is how errors name it.
TrainConfig parse_config(std::string_view text, const std::string& source,
                         const std::vector<std::string>& overrides = {},
                         StepsAre steps = StepsAre::required);

// The complete config as TOML, each key with its documentation as a comment where `comments` is
// set. parse_config(to_toml(c)) == c for every resolved c.
std::string to_toml(const TrainConfig& config, bool comments = true);

// A micro-batch goes through a model that is whole in one process in passes of some of its rows: so
// few tokens that what a pass keeps for its backward pass is small, enough of them for products to
// run at their full rate. The gradients add up to those of the micro-batch.
struct Passes {
  std::int64_t rows = 1;  // of a pass; the last may have fewer
  int count = 1;          // in a micro-batch
};
// `tokens_per_pass` 0: one pass. A pipeline's stages always make one, because its messages are
// whole micro-batches.
Passes passes_of(std::int64_t micro_batch, std::int64_t sequence_length,
                 std::int64_t tokens_per_pass, std::int64_t num_stages);

Passes passes_of(const TrainConfig& config);

// Of a config whose device.backend and device.precision are settled: automatic ones count as a
// CPU's and as the backend's own.
bool is_on_gpu(const TrainConfig& config);
Precision precision_of(const TrainConfig& config);

// How a run is spread over processes.
struct RunLayout {
  std::int64_t num_replicas = 1;
  std::int64_t num_stages = 1;
  std::int64_t micro_batches = 1;  // of one replica in one step
};
// Throws std::invalid_argument naming the key when the config does not fit that many processes.
RunLayout resolve_layout(const TrainConfig& config, std::int64_t num_processes);

// The paths of the files that the config names: globs expanded, each sorted, without repetition.
struct RunFiles {
  std::vector<std::string> train;
  std::vector<std::string> validation;  // empty where data.validation is
};
// Throws std::invalid_argument naming the key and the file when one is missing or not readable, or
// a pattern matches nothing. Reads no contents.
RunFiles resolve_files(const TrainConfig& config);

}  // namespace chaski
