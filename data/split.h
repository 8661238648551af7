#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "data/output_file.h"
#include "data/token_file_writer.h"
#include "data/tokenizer.h"

namespace chaski {

// Tokens of a corpus on their way into a token file: ids as the file will store them, and where
// the documents end.
class TokenSpool {
 public:
  // Spooled in the folder of `beside`. `bytes_per_token` is 2 or 4.
  TokenSpool(const std::string& beside, std::uint64_t bytes_per_token);

  struct Document {
    std::uint64_t end = 0;    // in tokens
    std::uint64_t bytes = 0;  // of its text
  };

  void add_tokens(const void* ids, std::uint64_t count);
  void end_document(std::uint64_t bytes);

  std::uint64_t num_tokens() const { return tokens_.size() / bytes_per_token_; }
  std::uint64_t num_documents() const { return documents_.size() / sizeof(Document); }
  std::uint64_t num_bytes() const { return num_bytes_; }
  std::uint64_t bytes_per_token() const { return bytes_per_token_; }

  // Calls `visit` with index, begin and Document for each document in order.
  void for_each_document(
      const std::function<void(std::uint64_t, std::uint64_t, const Document&)>& visit);
  // Calls `visit` with runs of the stored ids of the tokens [begin, end), in order.
  void for_each_run(std::uint64_t begin, std::uint64_t end,
                    const std::function<void(const std::byte*, std::size_t)>& visit);
  // One token's id.
  std::int32_t token(const std::byte* ids, std::uint64_t index) const;

 private:
  SpoolFile tokens_;
  SpoolFile documents_;
  std::uint64_t bytes_per_token_;
  std::uint64_t num_bytes_ = 0;
};

// How a corpus is divided into a train and a validation part.
struct Split {
  enum class Kind { none, by_document, block } kind = Kind::none;
  double fraction = 0.0;  // of the validation part
  std::uint64_t seed = 0;
  std::uint64_t cut = 0;  // block: the validation part is what comes from this token on
  TokenFileWriter::PartSize train, validation;

  std::string in_words() const;
};

// Whether a document goes to the validation part in a split by document: a pure function, each
// document with probability `fraction`.
bool in_validation(std::uint64_t document, double fraction, std::uint64_t seed);

// Divides by document where that gives about the wanted share of the tokens (within a factor of
// 2), else by one block at the end of the corpus, cut at the end of a document, line or word where
// one is near: so no part is ever empty, however few documents there are.
// `fraction` lies in [0, 1); 0: no split. Throws std::invalid_argument for a corpus of less than
// 2 tokens.
Split plan_split(TokenSpool& spool, const Tokenizer& tokenizer, double fraction,
                 std::uint64_t seed);

// Writes the parts of `spool` as `split` says.
void write_parts(TokenSpool& spool, const Split& split, TokenFileWriter& writer);

}  // namespace chaski
