#include "data/utf8.h"

#include <cstdint>
#include <cstring>

namespace chaski {
namespace {

struct Lead {
  int length;         // of the whole character; 0: no character begins with this byte
  unsigned char low;  // range of the second byte
  unsigned char high;
};

// Table 3-7 of the Unicode standard.
Lead lead_of(unsigned char c) {
  if (c < 0x80) return {1, 0, 0};
  if (c < 0xC2) return {0, 0, 0};
  if (c < 0xE0) return {2, 0x80, 0xBF};
  if (c == 0xE0) return {3, 0xA0, 0xBF};
  if (c == 0xED) return {3, 0x80, 0x9F};
  if (c < 0xF0) return {3, 0x80, 0xBF};
  if (c == 0xF0) return {4, 0x90, 0xBF};
  if (c < 0xF4) return {4, 0x80, 0xBF};
  if (c == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Number of bytes at `position` that belong to one character, and whether it is whole.
std::size_t character_bytes(std::string_view text, std::size_t position, bool& whole,
                            bool& incomplete) {
  const Lead lead = lead_of(static_cast<unsigned char>(text[position]));
  whole = incomplete = false;
  if (lead.length == 0) return 1;
  for (int i = 1; i < lead.length; ++i) {
    if (position + i >= text.size()) {
      incomplete = true;
      return i;
    }
    const auto byte = static_cast<unsigned char>(text[position + i]);
    const unsigned char low = i == 1 ? lead.low : 0x80;
    const unsigned char high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return i;
  }
  whole = true;
  return lead.length;
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size()) {
    // Eight ASCII characters at a time.
    while (position + 8 <= text.size()) {
      std::uint64_t word;
      std::memcpy(&word, text.data() + position, 8);
      if ((word & 0x8080808080808080u) != 0) break;
      position += 8;
    }
    if (position >= text.size()) break;
    bool whole, incomplete;
    const std::size_t length = character_bytes(text, position, whole, incomplete);
    if (!whole) break;
    position += length;
  }
  return position;
}

std::size_t ill_formed_length(std::string_view text, bool& incomplete) {
  bool whole;
  return character_bytes(text, 0, whole, incomplete);
}

std::string take_text(std::string_view& bytes) {
  std::string text;
  while (!bytes.empty()) {
    const std::size_t valid = valid_utf8_prefix(bytes);
    text.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) break;
    bool incomplete;
    const std::size_t length = ill_formed_length(bytes, incomplete);
    if (incomplete) break;
    bytes.remove_prefix(length);
    text.append(kReplacementCharacter);
  }
  return text;
}

std::string replace_ill_formed(std::string_view text) {
  std::string result = take_text(text);
  if (!text.empty()) result.append(kReplacementCharacter);
  return result;
}

std::size_t character_border(std::string_view text, std::size_t position) {
  if (position >= text.size()) return text.size();
  while (position > 0 && is_continuation(text[position])) --position;
  return position;
}

}  // namespace chaski
