#include "app/config/keys.h"

namespace chaski {

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
       .range = between(0, 0.9999999),  // above, 1 minus it is 0 in fp32
       .synonyms = {"beta1", "beta2", "adam_beta1", "adam_beta2"}},
      {.name = "epsilon",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::epsilon>,
       .documentation = "added to the root of the second moment",
       .range = from_to_below(1e-30, 1),
       .synonyms = {"eps", "adam_eps", "adam_epsilon"}},
      {.name = "weight_decay",
       .field = field<&TrainConfig::optimizer, &OptimizerConfig::weight_decay>,
       .documentation = "decoupled decay, times the learning rate; not applied to norms",
       .range = from_to_below(0, 1000),
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

}  // namespace chaski
