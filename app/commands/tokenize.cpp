#include <charconv>
#include <cstdio>
#include <fmt/core.h>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "app/commands/commands.h"
#include "app/commands/corpus_arguments.h"
#include "app/config/input_files.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/console/progress_bar.h"
#include "app/console/version.h"
#include "data/output_file.h"
#include "data/tokenize_corpus.h"

namespace chaski {
namespace {

struct TokenizeArguments {
  CorpusArguments corpus;
  std::string tokenizer;
  std::string split;
  TokenizeOptions options;
};

// The fraction in "validation=0.01".
double validation_fraction(const std::string& split) {
  if (split.empty()) return 0.0;
  constexpr std::string_view kName = "validation=";
  double fraction = 0.0;
  if (split.starts_with(kName)) {
    const char* begin = split.data() + kName.size();
    const char* end = split.data() + split.size();
    const auto [rest, error] = std::from_chars(begin, end, fraction);
    if (error == std::errc() && rest == end && fraction > 0.0 && fraction < 1.0) return fraction;
  }
  throw std::invalid_argument(fmt::format(
      "--split {}: must be validation=FRACTION with a fraction between 0 and 1", split));
}

void print_part(const char* name, const TokenFileWriter::PartSize& part) {
  if (part.num_tokens == 0) return;
  fmt::print("{:10} {}, {} tokens, {} bytes, {:.3f} bytes per token\n", name,
             format_number_of(static_cast<std::int64_t>(part.num_documents), "document"),
             part.num_tokens, part.num_bytes,
             static_cast<double>(part.num_bytes) / static_cast<double>(part.num_tokens));
}

void print_report(const TokenizeReport& report, const std::string& out) {
  fmt::print("corpus     {}\n", describe(report.corpus));
  print_part("train", report.train);
  print_part("validation", report.validation);
  if (report.split != "none") fmt::print("split      {}\n", report.split);
  if (report.unknown > 0) {
    fmt::print("warning    {} tokens stand for text that this tokenizer cannot represent\n",
               report.unknown);
  }
  fmt::print("tokens     {}\n", out);
}

void run_tokenize(const TokenizeArguments& arguments) {
  TokenizeOptions options = arguments.options;
  options.corpus = arguments.corpus.options;
  options.validation = validation_fraction(arguments.split);
  options.creator = version_line();
  check_input_file("--tokenizer", arguments.tokenizer);
  const auto tokenizer = Tokenizer::load(arguments.tokenizer);
  const auto files = arguments.corpus.files();
  remove_temporary_files_on_signals();
  ProgressBar progress("tokenizing", static_cast<std::int64_t>(total_bytes(files)), "bytes");
  std::string note;
  const TokenizeReport report =
      tokenize_corpus(files, tokenizer, options, [&](const TokenizeProgress& now) {
        note = fmt::format("{} tokens", format_count(static_cast<double>(now.tokens)));
        progress.update(static_cast<std::int64_t>(now.bytes_read), note);
      });
  progress.finish(note);
  print_report(report, options.out);
}

}  // namespace

void register_tokenize_command(CLI::App& app) {
  auto arguments = std::make_shared<TokenizeArguments>();
  TokenizeOptions& options = arguments->options;
  CLI::App* command = app.add_subcommand("tokenize", "Turn a corpus into a token file");
  arguments->corpus.add_to(*command);
  command->add_option("--tokenizer", arguments->tokenizer, "SentencePiece model")
      ->required()
      ->type_name("FILE.model");
  command->add_option("--out", options.out, "Token file to write")
      ->required()
      ->type_name("FILE.h5");
  command
      ->add_option("--split", arguments->split,
                   "Keep this fraction of the documents apart as validation part")
      ->type_name("validation=FRACTION");
  command->add_option("--seed", options.seed, "Of the split")->capture_default_str();
  add_threads(*command, options.threads, "Threads that encode; 0: all cores");
  command->add_flag("--force", options.overwrite, "Replace the file if it exists");
  command->callback([arguments] { run_tokenize(*arguments); });
}

}  // namespace chaski
