#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/corpus_reader.h"
#include "data/token_file_writer.h"
#include "data/tokenizer.h"

namespace chaski {

struct TokenizeOptions {
  std::string out;  // the token file to write
  bool overwrite = false;
  std::string creator;      // program and version, for the file
  CorpusOptions corpus;     // refuse_nul is set as the tokenizer needs it
  double validation = 0.0;  // fraction of the corpus, in [0, 1)
  std::uint64_t seed = 0;   // of the split
  int threads = 0;          // that encode; 0: all cores
};

struct TokenizeProgress {
  std::uint64_t bytes_read = 0;   // of the files on disk
  std::uint64_t total_bytes = 0;  // 0: unknown
  std::uint64_t tokens = 0;
};

struct TokenizeReport {
  CorpusCounts corpus;
  std::uint64_t tokens = 0;   // EOS included
  std::uint64_t unknown = 0;  // tokens that stand for text the tokenizer cannot represent
  std::string split;          // in words
  TokenFileWriter::PartSize train, validation;  // validation is empty without a split
};

// Turns a corpus into a token file, with an EOS behind every document. Memory does not grow with
// the corpus; tokens wait in a nameless file beside the output, which needs the space twice for a
// moment. The result is the same for every number of threads. `on_progress` is called now and
// then, by the calling thread.
//
// Throws std::invalid_argument for an empty corpus, a tokenizer without EOS or an option out of
// range, and as CorpusReader and TokenFileWriter do.
TokenizeReport tokenize_corpus(
    const std::vector<CorpusFile>& files, std::shared_ptr<const Tokenizer> tokenizer,
    const TokenizeOptions& options,
    const std::function<void(const TokenizeProgress&)>& on_progress = {});

}  // namespace chaski
