#include <cstdio>
#include <fmt/core.h>
#include <limits>
#include <memory>
#include <string>

#include "app/commands/commands.h"
#include "app/commands/corpus_arguments.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/console/progress_bar.h"
#include "data/output_file.h"
#include "data/tokenizer_training.h"

namespace chaski {
namespace {

struct TokenizerArguments {
  CorpusArguments corpus;
  TokenizerTraining training;
  std::string out;
  bool force = false;
};

void run_tokenizer(const TokenizerArguments& arguments) {
  const auto files = arguments.corpus.files();
  remove_temporary_files_on_signals();
  // Created first, so that a name that cannot be written is known before the work.
  OutputFile output(arguments.out, arguments.force);
  CorpusReader reader(files, arguments.corpus.options);
  ProgressBar progress("reading", static_cast<std::int64_t>(total_bytes(files)), "bytes");
  TokenizerTrainingReport report;
  const auto tokenizer =
      train_tokenizer(reader, arguments.training, report, [&](std::uint64_t bytes) {
        if (bytes != std::numeric_limits<std::uint64_t>::max()) {
          return progress.update(static_cast<std::int64_t>(bytes));
        }
        progress.finish();
        fmt::print(stderr, "learning {} tokens from {} ...\n", arguments.training.vocab_size,
                   format_bytes(static_cast<std::int64_t>(reader.counts().text_bytes)));
      });
  output.write(tokenizer->serialized());
  output.commit();
  fmt::print("corpus     {}\n", describe(report.corpus));
  if (report.sampled_bytes + report.corpus.text_bytes / 10 < report.corpus.text_bytes) {
    fmt::print("sample     {}\n", format_bytes(static_cast<std::int64_t>(report.sampled_bytes)));
  }
  fmt::print("tokenizer  {}: {} tokens, fingerprint {}\n", arguments.out, tokenizer->vocab_size(),
             tokenizer->fingerprint());
}

}  // namespace

void register_tokenizer_command(CLI::App& app) {
  auto arguments = std::make_shared<TokenizerArguments>();
  TokenizerTraining& training = arguments->training;
  CLI::App* command = app.add_subcommand(
      "tokenizer", "Train a SentencePiece tokenizer, from which any text can be got back exactly");
  arguments->corpus.add_to(*command);
  command->add_option("--vocab-size", training.vocab_size, "Tokens in the vocabulary")->required();
  command->add_option("--out", arguments->out, "Model file to write")
      ->required()
      ->type_name("FILE.model");
  const auto set_type = [arguments = arguments.get()](const std::string& type) {
    arguments->training.type = type == "unigram" ? TokenizerType::unigram : TokenizerType::bpe;
  };
  allow_only(command->add_option_function<std::string>("--type", set_type, "Algorithm"),
             {"bpe", "unigram"})
      ->default_str("bpe");
  command
      ->add_option("--sample-bytes", training.sample_bytes,
                   "Learn from about so much text; of a larger corpus, lines are drawn evenly")
      ->transform(CLI::Validator(to_bytes, ""))
      ->type_name("SIZE")
      ->capture_default_str();
  command
      ->add_option("--character-coverage", training.character_coverage,
                   "Share of the text whose characters get their own token; the rest is bytes")
      ->capture_default_str();
  command->add_option("--seed", training.seed, "Of the sample")->capture_default_str();
  command->add_option("--threads", training.threads, "Threads that learn")
      ->check(whole_number_between(1, 1024))
      ->capture_default_str();
  command->add_flag("--force", arguments->force, "Replace the file if it exists");
  command->callback([arguments] { run_tokenizer(*arguments); });
}

}  // namespace chaski
