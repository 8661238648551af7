#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

namespace chaski {

// Written into every token file; a reader refuses another version.
inline constexpr std::uint64_t kTokenFileVersion = 1;

enum class Part { train, validation };
const char* name_of(Part part);  // "train", "validation"

// What a token file says about itself.
struct TokenFileHeader {
  std::string creator;                // program and version that wrote it
  std::string tokenizer_fingerprint;  // as Tokenizer::fingerprint()
  std::string tokenizer_model;        // the SentencePiece model file
  std::uint64_t vocab_size = 0;
  std::uint64_t eos_id = 0;
  std::string split = "none";  // how the parts were made, in words
  struct Source {
    std::string path;
    std::uint64_t bytes = 0;
  };
  std::vector<Source> sources;

  // 2 up to 65536 tokens in the vocabulary, else 4.
  std::uint64_t bytes_per_token() const { return vocab_size <= 65536 ? 2 : 4; }
};

// The tokens of one part of a token file, mapped into memory: reading takes no lock and copies
// only what is asked for. Lives as long as the TokenFile. All may be called by several threads.
class TokenPart {
 public:
  std::uint64_t num_tokens() const { return num_tokens_; }  // EOS included
  std::uint64_t num_documents() const { return num_documents_; }
  std::uint64_t num_bytes() const { return num_bytes_; }  // of the text, for bits per byte

  // Ids of the tokens [begin, begin + count). Throws std::out_of_range for a range outside,
  // std::runtime_error for an id outside the vocabulary.
  void read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const;

  // Where document `index` begins; num_tokens() for index == num_documents().
  // Throws std::runtime_error where the file holds nonsense.
  std::uint64_t document_offset(std::uint64_t index) const;
  // The document in which `token` stands.
  std::uint64_t document_of(std::uint64_t token) const;

  // Reads everything and throws std::runtime_error where a checksum, an id or the order of the
  // documents is wrong. False when it was asked to stop before the end.
  bool verify_checksum(const std::stop_token& stop = {}) const;

 private:
  friend class TokenFile;
  struct Array {
    const unsigned char* data = nullptr;
    std::uint64_t size = 0;  // elements
    std::uint64_t checksum = 0;
  };

  bool checksum_is_right(const Array& array, std::uint64_t width,
                         const std::stop_token& stop) const;

  std::string where_;  // file and part, for messages
  Array tokens_, documents_;
  std::uint64_t bytes_per_token_ = 2;
  std::uint64_t vocab_size_ = 0;
  std::uint64_t num_tokens_ = 0, num_documents_ = 0, num_bytes_ = 0;
};

// An open token file (docs/formats.md), read only.
class TokenFile {
 public:
  // Throws std::runtime_error when the file cannot be read or is damaged, std::invalid_argument
  // when it is no token file or one of another version. The tokens themselves are checked only as
  // they are read.
  static std::shared_ptr<const TokenFile> open(const std::string& path);
  // Whether `path` looks like a token file, without judging the rest of it.
  static bool is_token_file(const std::string& path);
  ~TokenFile();

  const std::string& path() const { return path_; }
  const TokenFileHeader& header() const { return header_; }
  bool has_part(Part part) const;
  // Throws std::invalid_argument when the file has no such part.
  const TokenPart& part(Part part) const;

 private:
  class Opener;
  TokenFile() = default;

  std::string path_;
  TokenFileHeader header_;
  std::unique_ptr<TokenPart> parts_[2];
  void* map_ = nullptr;
  std::uint64_t map_bytes_ = 0;
};

}  // namespace chaski
