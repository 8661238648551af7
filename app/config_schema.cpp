#include "app/config_schema.h"

#include <type_traits>
#include <utility>

namespace chaski {
namespace {

ConfigRange at_least(double minimum) {
  return {.minimum = minimum};
}
ConfigRange above(double minimum) {
  return {.minimum = minimum, .minimum_excluded = true};
}
ConfigRange between(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum};
}
ConfigRange from_to_below(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum, .maximum_excluded = true};
}

template <auto Table, auto Member>
ConfigField field(TrainConfig& config) {
  auto& member = (config.*Table).*Member;
  if constexpr (std::is_enum_v<std::remove_reference_t<decltype(member)>>) {
    return choice(member);
  } else {
    return &member;
  }
}
template <auto Member>
ConfigField moc_field(TrainConfig& config) {
  auto& member = config.model.moc.*Member;
  if constexpr (std::is_enum_v<std::remove_reference_t<decltype(member)>>) {
    return choice(member);
  } else {
    return &member;
  }
}
template <auto Member>
ConfigField shape_field(TrainConfig& config) {
  return &(config.model.llama.*Member);
}

constexpr double kMaxCount = 1e9;  // keeps products of two counts within 64 bits
const char* const kShapeDefault = "the preset's; required without one";

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
  };
}

std::vector<ConfigKey> model_keys() {
  return {
      {.name = "preset",
       .field = field<&TrainConfig::model, &ModelConfig::preset>,
       .documentation = "a named shape; keys given beside it replace its values",
       .choices = llama_preset_names(),
       .default_text = "none",
       .synonyms = {"model", "name", "flavor", "size"}},
      {.name = "hidden_size",
       .field = shape_field<&LlamaConfig::hidden_size>,
       .documentation = "width of the residual stream",
       .range = between(1, 1 << 20),
       .default_text = kShapeDefault,
       .synonyms = {"dim", "d_model", "n_embd", "embedding_dim", "width"}},
      {.name = "intermediate_size",
       .field = shape_field<&LlamaConfig::intermediate_size>,
       .documentation = "width of the feed-forward network",
       .range = between(1, 1 << 22),
       .default_text = kShapeDefault,
       .synonyms = {"ffn_dim", "d_ff", "ffn_hidden_size", "hidden_dim"}},
      {.name = "num_layers",
       .field = shape_field<&LlamaConfig::num_layers>,
       .documentation = "number of blocks",
       .range = between(1, 100000),
       .default_text = kShapeDefault,
       .synonyms = {"num_hidden_layers", "n_layers", "n_layer", "layers", "depth"}},
      {.name = "num_heads",
       .field = shape_field<&LlamaConfig::num_heads>,
       .documentation = "attention heads of the queries",
       .range = between(1, 65536),
       .default_text = kShapeDefault,
       .synonyms = {"num_attention_heads", "n_heads", "n_head", "heads"}},
      {.name = "num_kv_heads",
       .field = shape_field<&LlamaConfig::num_kv_heads>,
       .documentation = "attention heads of keys and values; divides num_heads",
       .range = between(1, 65536),
       .default_text = "num_heads",
       .synonyms = {"num_key_value_heads", "n_kv_heads", "kv_heads"}},
      {.name = "head_dim",
       .field = shape_field<&LlamaConfig::head_dim>,
       .documentation = "width of a head; even",
       .range = between(2, 256),
       .default_text = "hidden_size / num_heads",
       .synonyms = {"head_size", "d_head"}},
      {.name = "vocab_size",
       .field = shape_field<&LlamaConfig::vocab_size>,
       .documentation = "entries of the vocabulary; the tokenizer must not have more",
       .range = between(2, 1 << 26),
       .default_text = kShapeDefault,
       .synonyms = {"vocab", "vocabulary_size", "n_vocab", "vocabulary"}},
      {.name = "max_position_embeddings",
       .field = shape_field<&LlamaConfig::max_position_embeddings>,
       .documentation = "longest sequence that the model is meant for",
       .range = between(1, 1 << 26),
       .synonyms = {"max_seq_len", "n_positions", "context_length", "n_ctx", "block_size"}},
      {.name = "rope_theta",
       .field = shape_field<&LlamaConfig::rope_theta>,
       .documentation = "base of the rotary embedding's wavelengths",
       .range = above(0),
       .synonyms = {"rotary_base", "rope_base"}},
      {.name = "rms_norm_eps",
       .field = shape_field<&LlamaConfig::rms_norm_eps>,
       .documentation = "added to the mean square in RMSNorm",
       .range = above(0),
       .synonyms = {"norm_eps", "layer_norm_eps", "norm_epsilon"}},
      {.name = "tie_embeddings",
       .field = shape_field<&LlamaConfig::tie_embeddings>,
       .documentation = "whether the head uses the embedding's weights",
       .synonyms = {"tie_word_embeddings", "tied_embeddings", "weight_tying"}},
      {.name = "initializer_range",
       .field = shape_field<&LlamaConfig::initializer_range>,
       .documentation = "standard deviation of the initial weights (norms start at 1)",
       .range = at_least(0),
       .synonyms = {"init_std", "init_method_std"}},
      {.name = "ffn",
       .field = field<&TrainConfig::model, &ModelConfig::ffn>,
       .documentation = "kind of feed-forward network; moc, Mixture-of-Channels: a SwiGLU of which "
                        "each token uses the channels with the largest gates",
       .choices = {"swiglu", "moc"},
       .synonyms = {"hidden_act", "activation", "mlp", "feed_forward"}},
      {.name = "recompute",
       .field = field<&TrainConfig::model, &ModelConfig::recompute>,
       .documentation = "what the backward pass computes again instead of keeping it: elementwise, "
                        "the activations of the feed-forward network between its products; block, "
                        "all but the input of each block; none: no activation of the feed-forward "
                        "network",
       .choices = {"none", "elementwise", "block"},
       .synonyms = {"activations", "activation_checkpointing", "gradient_checkpointing",
                    "recompute_granularity", "recompute_elementwise", "checkpoint_activations"}},
  };
}

std::vector<ConfigKey> moc_keys() {
  return {
      {.name = "keep",
       .field = moc_field<&MocTable::keep>,
       .documentation = "channels that a token uses: a count, or, written with a point, a share of "
                        "intermediate_size (at least one channel)",
       .default_text = "hidden_size / 2 or all; with pattern = \"2:8\" what that keeps",
       .synonyms = {"k", "top_k", "topk", "num_channels", "keep_ratio"}},
      {.name = "pattern",
       .field = moc_field<&MocTable::pattern>,
       .documentation = "topk: the largest of all channels; 2:8: the two largest of each eight "
                        "neighbours (at most two of a shorter group at the end)",
       .choices = {"topk", "2:8"},
       .synonyms = {"structure", "sparsity"}},
      {.name = "selection",
       .field = moc_field<&MocTable::selection>,
       .documentation =
           "what the largest is of: the signed gate before SiLU, or, for ablations, the "
           "magnitude of SiLU",
       .choices = {"gate", "silu-magnitude"},
       .synonyms = {"score", "criterion"}},
      {.name = "index",
       .field = moc_field<&MocTable::index>,
       .documentation = "how the channels of a token are kept for the backward pass: two bytes for "
                        "each that it uses, a bit for each that there is, or whichever is less",
       .choices = {"auto", "uint16", "bitmap"},
       .synonyms = {"index_dtype", "index_type"}},
  };
}

std::vector<ConfigKey> data_keys() {
  return {
      {.name = "train",
       .field = field<&TrainConfig::data, &DataConfig::train>,
       .documentation = "token files made by `chaski tokenize`: paths or globs; their train parts "
                        "are read",
       .default_text = "required",
       .synonyms = {"train_files", "path", "files", "dataset", "train_data", "data_path"}},
      {.name = "validation",
       .field = field<&TrainConfig::data, &DataConfig::validation>,
       .documentation = "token files of which the validation part is read (the whole file where it "
                        "has no such part)",
       .default_text = "the validation parts of the files of train",
       .synonyms = {"valid", "val", "eval", "validation_files", "val_data"}},
      {.name = "tokenizer",
       .field = field<&TrainConfig::data, &DataConfig::tokenizer>,
       .documentation = "SentencePiece model with which the token files must have been made",
       .default_text = "not checked: token files hold their tokenizer",
       .synonyms = {"tokenizer_path", "tokenizer_model"}},
      {.name = "sequence_length",
       .field = field<&TrainConfig::data, &DataConfig::sequence_length>,
       .documentation = "tokens of a row; at most model.max_position_embeddings",
       .range = between(1, 1 << 26),
       .synonyms = {"seq_len", "seq_length", "max_length", "max_seq_len", "block_size"}},
      {.name = "reset_at_documents",
       .field = field<&TrainConfig::data, &DataConfig::reset_at_documents>,
       .documentation = "whether attention and positions begin anew where a document begins within "
                        "a row",
       .synonyms = {"reset_attention_mask", "reset_position_ids", "document_mask"}},
      {.name = "shuffle",
       .field = field<&TrainConfig::data, &DataConfig::shuffle>,
       .documentation = "whether rows are read in an order of their own in each epoch (it follows "
                        "from seed and epoch), or as they lie in the files"},
      {.name = "prefetch",
       .field = field<&TrainConfig::data, &DataConfig::prefetch>,
       .documentation = "micro-batches read ahead by a thread of its own",
       .range = between(1, 4096),
       .synonyms = {"prefetch_factor"}},
  };
}

std::vector<ConfigKey> optimizer_keys() {
  return {
      {.name = "name",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::name>,
       .documentation = "the optimizer",
       .choices = {"adamw"},
       .synonyms = {"type", "kind", "optimizer", "optim"}},
      {.name = "lr",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::lr>,
       .documentation = "learning rate at the schedule's peak",
       .range = above(0),
       .synonyms = {"learning_rate", "max_lr", "peak_lr"}},
      {.name = "betas",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::betas>,
       .documentation = "decay rates of the first and of the second moment",
       .range = from_to_below(0, 1),
       .synonyms = {"beta1", "beta2", "adam_beta1", "adam_beta2"}},
      {.name = "epsilon",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::epsilon>,
       .documentation = "added to the root of the second moment",
       .range = above(0),
       .synonyms = {"eps", "adam_eps", "adam_epsilon"}},
      {.name = "weight_decay",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::weight_decay>,
       .documentation = "decoupled decay, times the learning rate; not applied to norms",
       .range = at_least(0),
       .synonyms = {"wd"}},
      {.name = "grad_clip",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::grad_clip>,
       .documentation = "largest L2 norm of the whole gradient, which is scaled down to it; 0: no "
                        "clipping",
       .range = at_least(0),
       .synonyms = {"max_grad_norm", "clip_grad", "gradient_clipping", "max_norm", "clip_norm"}},
  };
}

std::vector<ConfigKey> schedule_keys() {
  return {
      {.name = "kind",
       .field = field<&TrainConfig::schedule, &ScheduleConfig::kind>,
       .documentation = "course of the learning rate after the warm-up; wsd: constant, then linear "
                        "over decay_steps",
       .choices = {"constant", "linear", "cosine", "wsd"},
       .synonyms = {"name", "type", "scheduler", "lr_scheduler_type", "decay"}},
      {.name = "steps",
       .field = field<&TrainConfig::schedule, &ScheduleConfig::steps>,
       .documentation = "optimizer updates of the whole run",
       .range = between(1, 1e12),
       .default_text = "required",
       .synonyms = {"max_steps", "num_steps", "train_steps", "total_steps", "train_iters", "epochs",
                    "max_iters"}},
      {.name = "warmup_steps",
       .field = field<&TrainConfig::schedule, &ScheduleConfig::warmup_steps>,
       .documentation = "updates over which the rate rises linearly to its peak",
       .range = between(0, 1e12),
       .default_text = "steps / 10",
       .synonyms = {"warmup", "warmup_iters", "lr_warmup_steps", "warmup_ratio"}},
      {.name = "decay_steps",
       .field = field<&TrainConfig::schedule, &ScheduleConfig::decay_steps>,
       .documentation = "with kind = \"wsd\": the last updates, over which the rate falls",
       .range = between(0, 1e12),
       .default_text = "with kind = \"wsd\" steps / 5, else 0",
       .synonyms = {"cooldown_steps", "lr_decay_iters", "stable_steps"}},
      {.name = "min_lr_ratio",
       .field = field<&TrainConfig::schedule, &ScheduleConfig::min_lr_ratio>,
       .documentation = "rate at the end as a share of the peak",
       .range = between(0, 1),
       .synonyms = {"min_lr", "end_lr", "final_lr", "min_lr_rate"}},
  };
}

std::vector<ConfigKey> parallel_keys() {
  return {
      {.name = "data",
       .field = field<&TrainConfig::parallel, &ParallelConfig::data>,
       .documentation = "replicas that share the rows of a step; 0: as many as there are processes "
                        "for",
       .range = between(0, 1e6),
       .synonyms = {"data_parallel", "dp", "replicas", "data_parallel_size", "num_replicas"}},
      {.name = "pipeline",
       .field = field<&TrainConfig::parallel, &ParallelConfig::pipeline>,
       .documentation = "stages into which the layers of a replica are split, one process each",
       .range = between(1, 1e6),
       .synonyms = {"pipeline_parallel", "pp", "stages", "pipeline_model_parallel_size"}},
      {.name = "micro_batch",
       .field = field<&TrainConfig::parallel, &ParallelConfig::micro_batch>,
       .documentation = "rows that go through the model at once",
       .range = between(1, 1e6),
       .synonyms = {"micro_batch_size", "batch_size", "device_batch_size",
                    "per_device_train_batch_size", "local_batch_size"}},
      {.name = "global_batch",
       .field = field<&TrainConfig::parallel, &ParallelConfig::global_batch>,
       .documentation = "rows of one step; a multiple of micro_batch times the replicas, the rest "
                        "is gradient accumulation",
       .range = between(1, kMaxCount),
       .synonyms = {"global_batch_size", "total_batch_size", "gradient_accumulation_steps",
                    "grad_accumulation", "accumulation"}},
      {.name = "schedule",
       .field = field<&TrainConfig::parallel, &ParallelConfig::schedule>,
       .documentation = "order of the micro-batches' forward and backward passes in a stage",
       .choices = {"gpipe", "1f1b"},
       .synonyms = {"pipeline_schedule"}},
      {.name = "bucket_mb",
       .field = field<&TrainConfig::parallel, &ParallelConfig::bucket_mb>,
       .documentation = "MiB of gradients that are reduced together while backward goes on",
       .range = {.minimum = 0, .maximum = 1024, .minimum_excluded = true},
       .synonyms = {"bucket_cap_mb", "bucket_size", "bucket"}},
  };
}

std::vector<ConfigKey> fault_keys() {
  return {
      {.name = "tolerate",
       .field = field<&TrainConfig::fault, &FaultConfig::tolerate>,
       .documentation = "whether the run goes on when a process dies; only false is built: the run "
                        "ends and is resumed from its last checkpoint",
       .synonyms = {"enabled", "enable"}},
  };
}

std::vector<ConfigKey> evaluation_keys() {
  return {
      {.name = "every",
       .field = field<&TrainConfig::evaluation, &EvaluationConfig::every>,
       .documentation = "steps between two evaluations on the validation data; 0: only at the end",
       .range = between(0, 1e12),
       .synonyms = {"interval", "eval_interval", "eval_every", "eval_steps"}},
      {.name = "tokens",
       .field = field<&TrainConfig::evaluation, &EvaluationConfig::tokens>,
       .documentation = "validation tokens of one such evaluation, from the beginning; 0: all",
       .range = between(0, 1e15),
       .synonyms = {"eval_iters", "batches", "eval_batches", "max_tokens", "sequences"}},
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
       .documentation = "hand a GPU each block's ops as one CUDA graph, once they have run twice "
                        "with the same operands; the numbers are the same bit by bit",
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

std::vector<ConfigKey> all_keys() {
  std::vector<std::pair<const char*, std::vector<ConfigKey>>> tables = {
      {"run", run_keys()},
      {"model", model_keys()},
      {"model.moc", moc_keys()},
      {"data", data_keys()},
      {"optimizer", optimizer_keys()},
      {"schedule", schedule_keys()},
      {"parallel", parallel_keys()},
      {"fault", fault_keys()},
      {"evaluation", evaluation_keys()},
      {"checkpoint", checkpoint_keys()},
      {"log", log_keys()},
      {"device", device_keys()},
  };
  std::vector<ConfigKey> keys;
  for (auto& [table, table_keys] : tables) {
    for (ConfigKey& key : table_keys) {
      key.table = table;
      keys.push_back(std::move(key));
    }
  }
  return keys;
}

}  // namespace

const std::vector<ConfigTable>& config_tables() {
  static const std::vector<ConfigTable> tables = {
      {"run", "The run as a whole"},
      {"model", "The shape of the LLaMA model, in Hugging Face's terms"},
      {"model.moc", "Mixture-of-Channels, with model.ffn = \"moc\""},
      {"data", "What is read"},
      {"optimizer", "How weights are updated"},
      {"schedule", "How long, and with which learning rates"},
      {"parallel", "How a step is divided among processes and in time"},
      {"fault", "What happens when a process dies"},
      {"evaluation", "Validation during the run"},
      {"checkpoint", "When the state is saved, under <output>/checkpoints"},
      {"log", "What is reported"},
      {"device", "Where tensors live and in which precision"},
  };
  return tables;
}

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = all_keys();
  return keys;
}

const ConfigKey* find_config_key(std::string_view dotted_name) {
  for (const ConfigKey& key : config_keys()) {
    if (key.dotted_name() == dotted_name) return &key;
  }
  return nullptr;
}

}  // namespace chaski
