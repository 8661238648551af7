#include "app/bench/training.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "app/bench/operands.h"
#include "app/console/option_checks.h"
#include "app/plan/memory_check.h"

namespace chaski {
namespace {

LlamaConfig model_of(const BenchTrainingOptions& options) {
  LlamaConfig model = options.model.config();
  model.max_position_embeddings = std::max(model.max_position_embeddings, options.sequence_length);
  return model;
}

// The run that the benchmark is the steps of.
TrainConfig config_of(const BenchTrainingOptions& options, int num_processes) {
  TrainConfig config;
  config.model.llama = model_of(options);
  config.data.sequence_length = options.sequence_length;
  config.data.prefetch = 0;
  config.parallel.micro_batch = options.micro_batch;
  config.parallel.global_batch = options.micro_batch * options.micro_batches * num_processes;
  config.checkpoint.async = false;
  config.model.recompute = options.recompute;
  config.model.moc.index = options.model.moc_index;
  config.device.tokens_per_pass = options.tokens_per_pass;
  return config;
}

constexpr double kGradientClip = 1.0;

HostedModel& adopted(HostedModel& model, const Membership& membership) {
  model.adopt(membership);
  return model;
}

}  // namespace

BenchTraining::BenchTraining(const Membership& membership, Device& device,
                             const BenchTrainingOptions& options)
    : tokens_per_step_(options.micro_batch * options.sequence_length * options.micro_batches *
                       membership.communicator().size()),
      hosted_model_(device, hosted_model_options(
                                settle_device(config_of(options, membership.communicator().size()),
                                              options.choose_device(membership.communicator())),
                                options.micro_batches)),
      runner_(membership, adopted(hosted_model_, membership), kGradientClip) {
  hosted_model_.initialize(1);
  const Shape batch = {options.micro_batch, options.sequence_length};
  tokens_ = random_ids(device, batch, model().vocab_size, 1);
  targets_ = random_ids(device, batch, model().vocab_size, 2);
}

StepOutcome BenchTraining::step() {
  const auto source = [this](int, int) {
    return MicroBatch{tokens_.tensor(), targets_.tensor(), {}};
  };
  const StepInput input{.step = next_step_,
                        .updates = next_step_,
                        .targets = tokens_per_step_,
                        .learning_rate = 1e-4};
  ++next_step_;
  return runner_.run(input, source);
}

DeviceChoice BenchTrainingOptions::choose_device(Communicator& communicator) const {
  DeviceChoice choice = device_named(device.device, device.precision, communicator);
  choice.graphs = !no_graphs;
  return choice;
}

void check_memory_of_bench(const BenchTrainingOptions& options, const Membership& membership) {
  Communicator& communicator = membership.communicator();
  if (options.choose_device(communicator).backend != Backend::cpu) return;
  check_memory_of_run(config_of(options, communicator.size()), membership, options.model.threads,
                      "a smaller --micro-batch, --sequence-length or --preset needs less");
}

void add_bench_training_options(CLI::App& command, BenchTrainingOptions& options) {
  options.model.add_to(command);
  options.device.add_to(command);
  command.add_flag("--no-graphs", options.no_graphs,
                   "Without CUDA graphs, as device.graphs = false");
  command.add_option("--micro-batch", options.micro_batch, "Rows of a micro-batch")
      ->check(whole_number_between(1, 1000000))
      ->capture_default_str();
  add_count(command, "--sequence-length", options.sequence_length, "Tokens of a row");
  add_count(command, "--tokens-per-pass", options.tokens_per_pass,
            "As device.tokens_per_pass; 0: micro-batches in one pass", 0);
}

}  // namespace chaski
