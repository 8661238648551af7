#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/corpus_files.h"

namespace chaski {

enum class InvalidUtf8 { error, replace };

struct CorpusOptions {
  std::string text_key = "text";  // of a .jsonl object
  // A line of a .txt file in which this regular expression (RE2 syntax) is found ends a document
  // and belongs to none. Unset: blank lines do. Empty: each file is one document.
  std::optional<std::string> document_separator;
  InvalidUtf8 invalid_utf8 = InvalidUtf8::error;  // replace: by U+FFFD
  bool refuse_nul = false;                        // for tokenizers that cannot represent U+0000
  std::size_t block_bytes = 512 * 1024;           // size of a TextBlock, >= 64
  std::size_t max_line_bytes = 4 * 1024 * 1024;   // larger .jsonl lines are streamed
};

// A run of the corpus: whole documents one behind the other, or a part of a large one.
struct TextBlock {
  std::string text;  // valid UTF-8
  // Ascending positions in `text` at which documents end. What stands after the last of them
  // goes on in the next block.
  std::vector<std::size_t> document_ends;
};

struct CorpusCounts {
  std::uint64_t documents = 0;
  std::uint64_t empty_documents = 0;  // nothing but white space: skipped
  std::uint64_t text_bytes = 0;       // of the documents' text
  std::uint64_t replaced = 0;         // ill-formed sequences replaced by U+FFFD
};

// Reads the documents of a corpus in order, in bounded memory (a few blocks), whatever the size of
// files, documents and lines. A document is a line of a .jsonl file; in a .txt file what blank
// lines (or options.document_separator) separate. Its text keeps inner line ends as they are; the
// line end before the separator and a byte order mark at the start of a file belong to no
// document.
//
// A document larger than a block is cut after a line end, else before a space that follows
// something else, else between two characters.
//
// Errors are std::runtime_error that name the file and the byte or line (bytes count in the
// uncompressed text), std::invalid_argument for a bad regular expression.
class CorpusReader {
 public:
  CorpusReader(std::vector<CorpusFile> files, CorpusOptions options);
  ~CorpusReader();

  // Puts the next block into `block`, whose memory is reused. False at the end of the corpus.
  bool next(TextBlock& block);

  const CorpusCounts& counts() const;  // of what has been read so far
  std::uint64_t bytes_read() const;    // of the files on disk; <= total_bytes()
  std::uint64_t total_bytes() const;   // of the files on disk; 0: unknown

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace chaski
