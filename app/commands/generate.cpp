#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fmt/core.h>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>

#include "app/commands/commands.h"
#include "app/commands/loaded_model.h"
#include "app/console/option_checks.h"
#include "app/job/device_choice.h"
#include "data/tokenizer.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/measuring/timer.h"
#include "model/decoder.h"

namespace chaski {
namespace {

struct GenerateOptions {
  std::string checkpoint;
  std::string prompt;
  std::string prompt_file;
  std::int64_t max_tokens = 200;
  SamplingOptions sampling;
  std::uint64_t seed = 1;
  int threads = 0;
  std::string device = "auto";
  bool ignore_eos = false;
  bool quiet = false;
};

std::string read_prompt(const GenerateOptions& options) {
  if (options.prompt_file.empty()) return options.prompt;
  std::ifstream file(options.prompt_file, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    throw std::invalid_argument(
        fmt::format("--prompt-file {}: cannot be read, or is empty", options.prompt_file));
  }
  return text.str();
}

// Uniform in [0, 1) with 53 bits: the same on every standard library, unlike its distributions.
double uniform(std::mt19937_64& generator) {
  return static_cast<double>(generator() >> 11) * 0x1.0p-53;
}

class Printer {
 public:
  explicit Printer(std::shared_ptr<const Tokenizer> tokenizer) : decoder_(std::move(tokenizer)) {}
  void push(std::int32_t id) { write(decoder_.push(id)); }
  void finish() { write(decoder_.finish() + "\n"); }
  static void write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (std::fflush(stdout) != 0) {
      throw std::runtime_error("cannot write to standard output");
    }
  }

 private:
  StreamDecoder decoder_;
};

std::int64_t generate(const GenerateOptions& options, Decoder& decoder, Tensor logits,
                      const std::shared_ptr<const Tokenizer>& tokenizer) {
  std::mt19937_64 generator(options.seed);
  Printer printer(tokenizer);
  // The tokenizer may have fewer tokens than the model.
  const auto vocab_size = static_cast<std::size_t>(tokenizer->vocab_size());
  std::vector<float> row(static_cast<std::size_t>(logits.num_elements()));
  std::int64_t generated = 0;
  while (generated < options.max_tokens) {
    copy_to_host(logits, row.data());
    const std::int32_t token = sample_token(std::span<const float>(row).first(vocab_size),
                                            options.sampling, uniform(generator));
    ++generated;
    if (token == tokenizer->eos_id() && !options.ignore_eos) break;
    printer.push(token);
    if (generated == options.max_tokens || decoder.position() == decoder.capacity()) break;
    logits = decoder.feed({&token, 1});
  }
  printer.finish();
  return generated;
}

void run_generate(const GenerateOptions& options) {
  options.sampling.validate();
  const std::string prompt = read_prompt(options);
  const auto device = device_named(options.device, "fp32").create(options.threads);
  const CheckpointReader checkpoint(options.checkpoint, Verification::sizes);
  const auto stage = load_model(*device, checkpoint, StageOptions{.training = false});
  const auto tokenizer = tokenizer_of(checkpoint);

  // A document in training follows the end of another: that is what generation begins with.
  std::vector<std::int32_t> tokens;
  if (tokenizer->eos_id() >= 0) tokens.push_back(tokenizer->eos_id());
  for (const std::int32_t id : tokenizer->encode(prompt)) tokens.push_back(id);
  const std::int64_t positions = checkpoint.metadata().model.max_position_embeddings;
  if (static_cast<std::int64_t>(tokens.size()) >= positions) {
    throw std::invalid_argument(fmt::format(
        "the prompt's {} tokens do not fit: the model has {} positions", tokens.size(), positions));
  }
  const std::int64_t wanted = static_cast<std::int64_t>(tokens.size()) + options.max_tokens;
  Decoder decoder(*device, *stage, std::min(wanted, positions));
  Tensor logits = decoder.feed(tokens);
  Printer::write(prompt);
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t generated = generate(options, decoder, logits, tokenizer);
  const double seconds = seconds_since(start);
  if (options.quiet) return;
  fmt::print(stderr, "{} tokens in {:.2f} s, {:.1f} tokens/s{}\n", generated, seconds,
             static_cast<double>(generated) / seconds,
             decoder.position() == positions ? "; all positions of the model are used" : "");
}

}  // namespace

void register_generate_command(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Write text with a trained model");
  command->add_option("--checkpoint", options->checkpoint, "Checkpoint or run directory")
      ->required();
  auto* prompt = command->add_option("--prompt", options->prompt, "Text to continue");
  command->add_option("--prompt-file", options->prompt_file, "File with the text to continue")
      ->excludes(prompt);
  add_count(*command, "--max-tokens", options->max_tokens, "Tokens to write");
  command
      ->add_option("--temperature", options->sampling.temperature,
                   "Divides the logits; 0: always the most likely token")
      ->capture_default_str();
  command->add_option("--top-k", options->sampling.top_k, "Sample from the k most likely; 0: all")
      ->capture_default_str();
  command
      ->add_option("--top-p", options->sampling.top_p,
                   "Sample from the fewest tokens that have this probability together")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the sampling")->capture_default_str();
  add_threads(*command, options->threads, "CPU threads; 0: all cores");
  add_device_option(*command, options->device);
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after the end of a document");
  command->add_flag("--quiet", options->quiet, "No speed line on standard error");
  command->callback([options] { run_generate(*options); });
}

}  // namespace chaski
