#include "app/config/keys.h"

namespace chaski {

std::vector<ConfigKey> run_keys() {
  return {
      {.name = "name",
       .field = field<&TrainConfig::run, &RunConfig::name>,
       .documentation = "name of the run, for the console and the output directory",
       .synonyms = {"run_name", "experiment", "job_name"}},
      {.name = "output",
       .field = field<&TrainConfig::run, &RunConfig::output>,
       .documentation = "directory for the resolved config, the metrics and the checkpoints",
       .default_text = "runs/<name>",
       .synonyms = {"output_dir", "out_dir", "save_dir", "output_directory", "out"}},
      {.name = "seed",
       .field = field<&TrainConfig::run, &RunConfig::seed>,
       .documentation = "decides the initial weights and the order of the data",
       .range = at_least(0),
       .synonyms = {"random_seed"}},
      {.name = "threads",
       .field = field<&TrainConfig::run, &RunConfig::threads>,
       .documentation = "threads of each process; 0: the cores, shared among the processes of a "
                        "machine",
       .range = between(0, 4096),
       .synonyms = {"num_threads", "n_threads", "workers", "num_workers"}},
      {.name = "nonfinite",
       .field = field<&TrainConfig::run, &RunConfig::nonfinite>,
       .documentation = "when a loss or gradient is NaN or infinite: leave the update of that step "
                        "out, or stop",
       .choices = {"skip", "stop"},
       .synonyms = {"nan", "nan_policy", "detect_anomaly"}},
      {.name = "max_skipped_steps",
       .field = field<&TrainConfig::run, &RunConfig::max_skipped_steps>,
       .documentation =
           "with nonfinite = \"skip\": how many steps in a row may be skipped before the run stops",
       .range = between(1, kMaxCount)},
      {.name = "check_replicas",
       .field = field<&TrainConfig::run, &RunConfig::check_replicas>,
       .documentation = "steps between two comparisons of the replicas' weights and optimizer "
                        "states, which must have the same bits: a run in which they differ stops; "
                        "0: none",
       .range = between(0, 1e12)},
  };
}

std::vector<ConfigKey> checkpoint_keys() {
  return {
      {.name = "every",
       .field = field<&TrainConfig::checkpoint, &CheckpointConfig::every>,
       .documentation = "steps between two checkpoints; 0: only at the end and on SIGTERM or "
                        "SIGINT",
       .range = between(0, 1e12),
       .synonyms = {"interval", "save_interval", "save_every", "save_steps"}},
      {.name = "keep",
       .field = field<&TrainConfig::checkpoint, &CheckpointConfig::keep>,
       .documentation = "how many of the newest are kept; 0: all",
       .range = between(0, kMaxCount),
       .synonyms = {"keep_latest_k", "keep_last", "save_total_limit", "max_to_keep"}},
      {.name = "keep_every",
       .field = field<&TrainConfig::checkpoint, &CheckpointConfig::keep_every>,
       .documentation = "those at a multiple of so many steps are never deleted; 0: none",
       .range = between(0, 1e12)},
      {.name = "async",
       .field = field<&TrainConfig::checkpoint, &CheckpointConfig::async>,
       .documentation = "whether training goes on while a checkpoint is written",
       .synonyms = {"async_save", "async_mode"}},
  };
}

std::vector<ConfigKey> log_keys() {
  return {
      {.name = "every",
       .field = field<&TrainConfig::log, &LogConfig::every>,
       .documentation = "steps between two lines on the console (the metrics file has every step)",
       .range = between(1, 1e12),
       .synonyms = {"interval", "log_interval", "log_every", "logging_steps", "log_freq"}},
      {.name = "jsonl",
       .field = field<&TrainConfig::log, &LogConfig::jsonl>,
       .documentation = "metrics file, one JSON object a step; relative to run.output; \"\": none",
       .synonyms = {"path", "file", "metrics", "metrics_file"}},
      {.name = "console",
       .field = field<&TrainConfig::log, &LogConfig::console>,
       .documentation = "auto: colours and progress bars on a terminal; plain: neither; off: "
                        "nothing but warnings and errors",
       .choices = {"auto", "plain", "off"},
       .synonyms = {"color", "colour", "quiet", "progress"}},
      {.name = "dead_channel_steps",
       .field = field<&TrainConfig::log, &LogConfig::dead_channel_steps>,
       .documentation =
           "with model.ffn = \"moc\": a channel that no token has selected for so many "
           "steps is reported as dead",
       .range = between(1, 1e12)},
  };
}

std::vector<ConfigKey> device_keys() {
  return {
      {.name = "backend",
       .field = field<&TrainConfig::device, &DeviceConfig::backend>,
       .documentation = "where the model is computed; auto: the best that the build and the "
                        "machine have",
       .choices = {"auto", "cpu", "cuda"},
       .synonyms = {"device", "type", "name", "accelerator"}},
      {.name = "precision",
       .field = field<&TrainConfig::device, &DeviceConfig::precision>,
       .documentation = "numbers to compute with. fp32: in all tensors; tf32: the same, with fp32 "
                        "matrices multiplied as TF32; bf16: activations and the weights that ops "
                        "read, over fp32 master weights, gradients and moments; bf16-pure: all of "
                        "these in bf16. auto: bf16 on a GPU, fp32 on the CPU, which has no other",
       .choices = {"auto", "fp32", "tf32", "bf16", "bf16-pure"},
       .synonyms = {"dtype", "mixed_precision", "bf16", "fp16", "compute_dtype"}},
      {.name = "stochastic_rounding",
       .field = field<&TrainConfig::device, &DeviceConfig::stochastic_rounding>,
       .documentation = "with bf16-pure: round updated weights and moments up or down at random, "
                        "the nearer the likelier, so that small updates count on average",
       .synonyms = {"sr", "rounding"}},
      {.name = "graphs",
       .field = field<&TrainConfig::device, &DeviceConfig::graphs>,
       .documentation =
           "hand a GPU each block's ops, and the head's, as one CUDA graph each, once they have "
           "run twice with the same operands; the numbers are the same bit by bit",
       .synonyms = {"cuda_graphs", "cuda_graph", "use_cuda_graph", "capture"}},
      {.name = "tokens_per_pass",
       .field = field<&TrainConfig::device, &DeviceConfig::tokens_per_pass>,
       .documentation =
           "on a CPU, where the whole model is in one process, a micro-batch goes through it in "
           "passes of as many rows as have this many tokens (at least one), which "
           "need memory for their own activations only; 0: in one pass",
       .range = at_least(0),
       .synonyms = {"pass_tokens", "tokens_per_slice", "max_tokens"}},
  };
}

}  // namespace chaski
