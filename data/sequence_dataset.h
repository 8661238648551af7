#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/token_file.h"

namespace chaski {

// A micro-batch, each array row-major [rows, sequence_length].
struct Batch {
  std::int64_t rows = 0;
  std::int64_t sequence_length = 0;
  std::vector<std::int32_t> tokens;     // inputs
  std::vector<std::int32_t> targets;    // the token after each input
  std::vector<std::int32_t> positions;  // 0 … sequence_length - 1, or from 0 again in every
                                        // document where positions are reset

  // Sizes the arrays; allocates only when they grow.
  void resize(std::int64_t new_rows, std::int64_t new_sequence_length);
};

// The same part of several token files, one behind the other.
class TokenStream {
 public:
  // Opens the files. Throws std::invalid_argument when there are none, when one lacks the part or
  // when their tokenizers differ, and as TokenFile::open.
  static std::shared_ptr<const TokenStream> open(const std::vector<std::string>& paths, Part part);

  std::uint64_t num_tokens() const { return num_tokens_; }
  std::uint64_t num_documents() const { return num_documents_; }
  std::uint64_t num_bytes() const { return num_bytes_; }
  std::uint64_t vocab_size() const { return header().vocab_size; }
  const std::string& fingerprint() const { return header().tokenizer_fingerprint; }
  // Of the first file; vocabulary and tokenizer are those of all.
  const TokenFileHeader& header() const { return files_.front()->header(); }
  const std::vector<std::shared_ptr<const TokenFile>>& files() const { return files_; }
  Part part() const { return part_; }

  // Tokens [begin, begin + count) of the whole stream; errors as TokenPart::read.
  void read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const;

  // Positions within their documents of the tokens [begin, begin + count): counted from 0 at
  // `begin` and again from every token at which a document begins.
  void read_positions(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const;

 private:
  TokenStream() = default;
  // The file that holds `token`.
  std::size_t file_of(std::uint64_t token) const;

  std::vector<std::shared_ptr<const TokenFile>> files_;
  std::vector<std::uint64_t> begins_;  // of each file in the stream, and the end of the last
  Part part_ = Part::train;
  std::uint64_t num_tokens_ = 0, num_documents_ = 0, num_bytes_ = 0;
};

// A token stream cut into windows of sequence_length inputs: window i has the inputs
// [i * sequence_length, (i + 1) * sequence_length) and as targets the tokens one further. Tokens
// behind the last whole window are not used.
class SequenceDataset {
 public:
  // Throws std::invalid_argument when the stream is too short for one window, and as
  // TokenStream::open. sequence_length >= 1.
  static std::shared_ptr<const SequenceDataset> open(const std::vector<std::string>& paths,
                                                     Part part, std::int64_t sequence_length);

  std::uint64_t num_sequences() const { return num_sequences_; }
  std::int64_t sequence_length() const { return sequence_length_; }
  const TokenStream& stream() const { return *stream_; }
  const std::shared_ptr<const TokenStream>& shared_stream() const { return stream_; }

  // Fills row `row` of `batch`, which has this dataset's sequence_length.
  void read(std::uint64_t sequence, bool reset_at_documents, std::int64_t row, Batch& batch) const;

 private:
  SequenceDataset() = default;
  std::shared_ptr<const TokenStream> stream_;
  std::int64_t sequence_length_ = 0;
  std::uint64_t num_sequences_ = 0;
};

}  // namespace chaski
