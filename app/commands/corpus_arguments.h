#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus_reader.h"

namespace chaski {

// What the commands that read a corpus have in common.
struct CorpusArguments {
  std::vector<std::string> corpus;
  CorpusOptions options;

  // This object must outlive `command`.
  void add_to(CLI::App& command);
  // Throws as find_corpus_files().
  std::vector<CorpusFile> files() const { return find_corpus_files(corpus); }
};

std::uint64_t total_bytes(const std::vector<CorpusFile>& files);

// "1 234 documents, 5.6 MB of text; 3 empty documents skipped".
std::string describe(const CorpusCounts& counts);

}  // namespace chaski
