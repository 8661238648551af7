#include "app/commands/corpus_arguments.h"

#include <fmt/format.h>

#include "app/console/human_format.h"
#include "app/console/option_checks.h"

namespace chaski {

void CorpusArguments::add_to(CLI::App& command) {
  command
      .add_option("corpus", corpus,
                  "Files (.txt, .jsonl, also with .gz or .zst), globs, or folders of such files")
      ->required()
      ->type_name("CORPUS");
  command.add_option("--text-key", options.text_key, "Key of a .jsonl object that holds the text")
      ->capture_default_str();
  command
      .add_option("--document-separator", options.document_separator,
                  "Lines of a .txt file in which this regular expression is found separate "
                  "documents; '': each file is one document. Default: blank lines")
      ->type_name("REGEX");
  const auto set_policy = [this](const std::string& policy) {
    options.invalid_utf8 = policy == "replace" ? InvalidUtf8::replace : InvalidUtf8::error;
  };
  allow_only(command.add_option_function<std::string>(
                 "--invalid-utf8", set_policy,
                 "Bytes that are no UTF-8: stop with an error, or replace them by U+FFFD"),
             {"error", "replace"})
      ->default_str("error");
}

std::uint64_t total_bytes(const std::vector<CorpusFile>& files) {
  std::uint64_t bytes = 0;
  for (const CorpusFile& file : files) bytes += file.bytes;
  return bytes;
}

std::string describe(const CorpusCounts& counts) {
  std::string text = fmt::format(
      "{}, {} of text", format_number_of(static_cast<std::int64_t>(counts.documents), "document"),
      format_bytes(static_cast<std::int64_t>(counts.text_bytes)));
  if (counts.empty_documents > 0) {
    text += fmt::format(
        "; {} skipped",
        format_number_of(static_cast<std::int64_t>(counts.empty_documents), "empty document"));
  }
  if (counts.replaced > 0) {
    text += fmt::format("; {} ill-formed UTF-8 sequences replaced by U+FFFD", counts.replaced);
  }
  return text;
}

}  // namespace chaski
