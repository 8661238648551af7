#include "app/bench_training.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <random>

namespace chaski {
namespace {

LlamaConfig model_of(const BenchTrainingOptions& options) {
  LlamaConfig model = options.model.config();
  model.max_position_embeddings = std::max(model.max_position_embeddings, options.sequence_length);
  return model;
}

Buffer random_tokens(Device& device, const BenchTrainingOptions& options, std::int64_t vocab_size,
                     std::mt19937& generator) {
  Buffer buffer = device.allocate(DType::i32, {options.micro_batch, options.sequence_length},
                                  MemoryCategory::activations);
  for (std::int64_t i = 0; i < buffer.tensor().num_elements(); ++i) {
    buffer.tensor().i32()[i] = static_cast<std::int32_t>(generator() % vocab_size);
  }
  return buffer;
}

}  // namespace

BenchTraining::BenchTraining(Communicator& communicator, Device& device,
                             const BenchTrainingOptions& options)
    : model_(model_of(options)),
      tokens_per_step_(options.micro_batch * options.sequence_length * options.micro_batches *
                       communicator.size()) {
  StepEngineOptions engine_options;
  engine_options.model = model_;
  engine_options.num_replicas = communicator.size();
  engine_options.micro_batches = options.micro_batches;
  engine_options.micro_batch = options.micro_batch;
  engine_options.sequence_length = options.sequence_length;
  engine_options.tokens_per_pass = options.tokens_per_pass;
  engine_options.policy = options.recompute ? ActivationPolicy::recompute : ActivationPolicy::exact;
  engine_ = std::make_unique<StepEngine>(communicator, device, engine_options);
  engine_->stage().initialize(1);
  std::mt19937 generator(1);
  tokens_ = random_tokens(device, options, model_.vocab_size, generator);
  targets_ = random_tokens(device, options, model_.vocab_size, generator);
}

StepOutcome BenchTraining::step() {
  const auto source = [this](int, int) {
    return MicroBatch{tokens_.tensor(), targets_.tensor(), {}};
  };
  return engine_->run(next_step_++, source, tokens_per_step_, 1e-4, false);
}

void add_bench_training_options(CLI::App& command, BenchTrainingOptions& options) {
  options.model.add_to(command);
  command.add_option("--micro-batch", options.micro_batch, "Rows of a micro-batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--sequence-length", options.sequence_length, "Tokens of a row")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--tokens-per-pass", options.tokens_per_pass,
                  "As device.tokens_per_pass; 0: micro-batches in one pass")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

}  // namespace chaski
