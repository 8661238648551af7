#include <fmt/core.h>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "app/commands/commands.h"
#include "app/commands/loaded_model.h"
#include "app/config/config.h"
#include "app/config/input_files.h"
#include "app/config/stored_config.h"
#include "app/console/option_checks.h"
#include "app/job/device_choice.h"
#include "app/job/job.h"
#include "app/job/mpi_session.h"
#include "app/training/evaluation.h"
#include "data/background_verification.h"

namespace chaski {
namespace {

struct EvalArguments {
  std::string checkpoint;
  std::vector<std::string> data;
  std::string part;
  std::int64_t sequence_length = 0;  // 0: the checkpoint's
  std::int64_t micro_batch = 8;
  std::int64_t max_tokens = 0;
  int threads = 0;
  std::string device = "auto";
  bool json = false;
};

// The validation part where every file has one, else the train part; or what was asked for.
std::shared_ptr<const TokenStream> open_stream(const EvalArguments& arguments) {
  const std::vector<std::string> paths = resolve_input_files("--data", arguments.data);
  Part part = Part::validation;
  if (arguments.part == "train") part = Part::train;
  if (arguments.part.empty()) {
    for (const std::string& path : paths) {
      if (!TokenFile::open(path)->has_part(Part::validation)) part = Part::train;
    }
  }
  return TokenStream::open(paths, part);
}

void check_fits(const CheckpointReader& checkpoint, const TokenStream& stream) {
  const CheckpointMetadata& metadata = checkpoint.metadata();
  const std::string& expected = metadata.tokenizer_fingerprint;
  const std::string& path = stream.files().front()->path();
  if (!expected.empty() && stream.fingerprint() != expected) {
    throw std::invalid_argument(
        fmt::format("{} was made with tokenizer {}, but {} was trained with {}\nhint: run `chaski "
                    "tokenize` with the checkpoint's tokenizer; `chaski export` writes it",
                    path, stream.fingerprint(), checkpoint.path(), expected));
  }
  if (stream.vocab_size() > static_cast<std::uint64_t>(metadata.model.vocab_size)) {
    throw std::invalid_argument(
        fmt::format("{} has {} tokens in its vocabulary, but the model {} has only {}", path,
                    stream.vocab_size(), checkpoint.path(), metadata.model.vocab_size));
  }
}

// Imported models have positions for far longer texts than an evaluation has the memory or time
// for.
constexpr std::int64_t kMostDefaultLength = 2048;

struct WindowLength {
  std::int64_t tokens;
  const char* reason;
};

WindowLength window_length(const EvalArguments& arguments, const CheckpointMetadata& metadata) {
  const std::int64_t positions = metadata.model.max_position_embeddings;
  if (arguments.sequence_length > positions) {
    throw std::invalid_argument(
        fmt::format("--sequence-length {} is not allowed: the model has positions for 1 to {}",
                    arguments.sequence_length, positions));
  }
  if (arguments.sequence_length > 0) return {arguments.sequence_length, "as asked for"};
  if (metadata.config_toml.empty()) {
    if (positions <= kMostDefaultLength) return {positions, "all of the model's positions"};
    return {kMostDefaultLength, "the default for a model that was not trained here"};
  }
  const StoredConfig stored = parse_stored_config(metadata.config_toml, "the checkpoint's config");
  return {stored.config.data.sequence_length, "as in training"};
}

void print_result(const EvalArguments& arguments, const CheckpointReader& checkpoint,
                  const TokenStream& stream, const WindowLength& length,
                  const EvaluationResult& result) {
  const double bits_per_byte = result.bits_per_byte(tokens_per_byte(stream));
  if (arguments.json) {
    nlohmann::ordered_json report;
    report["checkpoint"] = checkpoint.path();
    report["part"] = name_of(stream.part());
    report["sequence_length"] = length.tokens;
    report["tokens"] = result.tokens;
    report["loss"] = result.loss();
    report["perplexity"] = result.perplexity();
    report["bits_per_byte"] = bits_per_byte;
    fmt::print("{}\n", report.dump(2));
    return;
  }
  fmt::print("checkpoint     {} (step {})\n", checkpoint.path(), checkpoint.metadata().step);
  fmt::print("data           {} part, {} tokens\n", name_of(stream.part()), result.tokens);
  fmt::print("windows        {} tokens each ({})\n", length.tokens, length.reason);
  fmt::print("loss           {:.6f} nats per token\n", result.loss());
  fmt::print("perplexity     {:.4f}\n", result.perplexity());
  fmt::print("bits per byte  {:.4f}\n", bits_per_byte);
}

void run_eval(const EvalArguments& arguments) {
  Communicator communicator(mpi_session());
  const CheckpointReader checkpoint(arguments.checkpoint, Verification::sizes);
  const auto stream = open_stream(arguments);
  check_fits(checkpoint, *stream);
  const int threads = threads_for_process(communicator, arguments.threads);
  const auto device = device_named(arguments.device, "fp32", communicator).create(threads);
  StageOptions options;
  options.training = false;
  options.micro_batch = arguments.micro_batch;
  const WindowLength length = window_length(arguments, checkpoint.metadata());
  options.sequence_length = length.tokens;
  const auto stage = load_model(*device, checkpoint, options);
  const Roster roster = Roster::initial(communicator.size(), 1, communicator.size());
  const Slot slot{.replica = communicator.rank(), .stage = 0};
  PipelineExecutor executor(communicator, roster, ScheduleKind::one_f_one_b, 1,
                            {{.slot = slot, .stage = stage.get()}});
  BatchTensors tensors(*device, options.micro_batch, options.sequence_length);
  const EvaluationSetting setting{communicator,          executor,
                                  roster.num_replicas(), {{slot.replica, &tensors}},
                                  options.micro_batch,   options.sequence_length};
  std::optional<ProgressBar> progress;
  if (communicator.rank() == 0) {
    const EvaluationWindows all(stream, options.sequence_length, 0, 1, arguments.max_tokens);
    progress.emplace("eval", static_cast<std::int64_t>(all.num_windows()), "windows");
  }
  std::optional<BackgroundVerification> verification;
  if (communicator.rank() == 0) verification.emplace(std::vector{stream});
  const EvaluationResult result =
      evaluate(setting, stream, arguments.max_tokens, progress ? &*progress : nullptr);
  run_on(0, communicator, [&] {
    // Where only the beginning was asked for, the rest may take far longer to read.
    arguments.max_tokens > 0 ? verification->check() : verification->wait();
    return std::string();
  });
  if (communicator.rank() != 0) return;
  progress->finish();
  print_result(arguments, checkpoint, *stream, length, result);
}

}  // namespace

void register_eval_command(CLI::App& app) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand(
      "eval", "Perplexity and bits per byte of a model on token files; also under mpirun");
  command->add_option("--checkpoint", arguments->checkpoint, "Checkpoint or run directory")
      ->required();
  command->add_option("--data", arguments->data, "Token files; globs too")->required();
  allow_only(command->add_option(
                 "--part", arguments->part,
                 "Part of the token files; default: validation where all have it, else train"),
             {"train", "validation"});
  command
      ->add_option(
          "--sequence-length", arguments->sequence_length,
          fmt::format("Tokens of a window; default: as in training; for an imported model all "
                      "of its positions, at most {}",
                      kMostDefaultLength))
      ->check(whole_number_from(1));
  add_count(*command, "--micro-batch", arguments->micro_batch, "Windows at a time");
  command
      ->add_option("--max-tokens", arguments->max_tokens,
                   "Only so many from the beginning, rounded up to whole windows")
      ->check(whole_number_from(1));
  add_threads(*command, arguments->threads, "CPU threads a process; 0: its share");
  add_device_option(*command, arguments->device);
  add_json(*command, arguments->json);
  command->callback([arguments] { run_eval(*arguments); });
}

}  // namespace chaski
