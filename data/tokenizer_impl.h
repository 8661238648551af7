#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <sentencepiece_processor.h>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace chaski {

// SentencePiece writes a space as U+2581.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

class Tokenizer::Impl {
 public:
  Impl(std::string serialized, const std::string& origin);

  // May text be cut between the bytes `a` and `b`? Only asked where a character begins at `b`.
  bool cuts_between(char a, char b) const {
    return !joined_[static_cast<unsigned char>(a) * 256 + static_cast<unsigned char>(b)];
  }

  sentencepiece::SentencePieceProcessor processor;
  std::string serialized;
  std::string fingerprint;
  std::vector<std::string> bytes;            // that each id stands for
  std::array<std::int32_t, 3> space_mark{};  // ids of the bytes of U+2581; used where lossless
  bool lossless = false;
  bool cuttable = false;      // words can be encoded one by one
  bool strips_space = false;  // decoding drops a space at the start of the text

 private:
  void read_pieces();
  std::bitset<65536> joined_;  // pairs of bytes that stand side by side in some piece
};

}  // namespace chaski
