#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace chaski {

enum class CorpusFormat { text, json_lines };

struct CorpusFile {
  std::string path;
  CorpusFormat format;
  std::uint64_t bytes;  // size on disk (compressed size where compressed)
};

// The files that the user's CORPUS arguments mean, in this order: arguments as given; the matches
// of a glob (`*`, `?`, `[…]`) and the files of a folder (all levels, no hidden ones) sorted by
// name. Supported are .txt and .jsonl, each also with .gz or .zst behind; a folder's other files
// are left out. Throws std::invalid_argument for an argument that names nothing, a file of another
// kind or a file named twice, std::runtime_error for a folder or file that cannot be read.
std::vector<CorpusFile> find_corpus_files(const std::vector<std::string>& arguments);

}  // namespace chaski
