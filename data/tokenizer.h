#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace chaski {

// A SentencePiece model: text to token ids and back. Immutable, to be shared by threads.
//
// For a model that is `lossless()`, as `chaski tokenizer` makes them, decode(encode(x)) == x for
// every valid UTF-8 text x: line ends, tabs, NUL and runs of spaces included. U+2581, which
// SentencePiece takes for a space, is encoded by its three bytes.
class Tokenizer {
 public:
  // Throws std::runtime_error when the file cannot be read, std::invalid_argument when it is no
  // SentencePiece model.
  static std::shared_ptr<const Tokenizer> load(const std::string& path);
  // `origin` names the bytes in error messages.
  static std::shared_ptr<const Tokenizer> from_bytes(std::string serialized,
                                                     const std::string& origin);
  ~Tokenizer();

  // Ids of `text`, without BOS and EOS. Ill-formed UTF-8 is taken for U+FFFD.
  std::vector<std::int32_t> encode(std::string_view text) const;
  // Text of `ids`; BOS and EOS stand for nothing, bytes that are no UTF-8 become U+FFFD.
  // Throws std::out_of_range for an id outside [0, vocab_size).
  std::string decode(std::span<const std::int32_t> ids) const;

  std::int32_t vocab_size() const;
  std::int32_t unk_id() const;  // -1 where the model has none, as for the next two
  std::int32_t bos_id() const;
  std::int32_t eos_id() const;

  // The model file, byte by byte.
  const std::string& serialized() const;
  // XXH3-128 of serialized(), 32 hexadecimal digits: equal if and only if the tokenizers are.
  const std::string& fingerprint() const;

  // No normalisation, no added or removed spaces, bytes for unknown characters.
  bool lossless() const;
  // The bytes that token `id` stands for; empty for control tokens.
  std::string_view bytes_of(std::int32_t id) const;

 private:
  friend class Encoder;
  friend class StreamDecoder;
  class Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Decodes tokens one by one, as generation needs it: never hands out half a character.
class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer);

  // The text that is certain after one more token; may be empty.
  std::string push(std::int32_t id);
  // What is left at the end: U+FFFD for a character that was never finished.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string pending_;
  bool at_start_ = true;
};

// What a thread needs to encode much text fast. Gives the same ids as Tokenizer::encode.
//
// Text is cut into words wherever no piece of the vocabulary spans the two bytes beside the cut:
// BPE merges and unigram paths cannot cross there either, so words can be encoded one by one, and
// the ids of frequent words are remembered (at most about 16 MiB).
class Encoder {
 public:
  explicit Encoder(std::shared_ptr<const Tokenizer> tokenizer);
  ~Encoder();

  // Appends the ids of `text` to `ids`.
  void encode(std::string_view text, std::vector<std::int32_t>& ids);

 private:
  class WordCache;
  void encode_words(std::string_view text, std::vector<std::int32_t>& ids);
  void encode_uncached(std::string_view word, std::vector<std::int32_t>& ids);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<WordCache> cache_;
  std::uint64_t encoded_bytes_ = 0;
  std::vector<int> scratch_;
};

}  // namespace chaski
