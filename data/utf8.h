#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace chaski {

// UTF-8 of U+FFFD, what replaces bytes that are no UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Length of the longest prefix of `text` that is valid UTF-8 (no surrogates, no overlong forms,
// at most U+10FFFF).
std::size_t valid_utf8_prefix(std::string_view text);

// Length of the ill-formed sequence at the start of `text`, which does not begin with valid UTF-8:
// the "maximal subpart" that Unicode recommends to replace by one U+FFFD; 1 to 3.
// `incomplete` tells whether more bytes after `text` could make it valid.
std::size_t ill_formed_length(std::string_view text, bool& incomplete);

// Takes from the front of `bytes` all that is certain, with every ill-formed sequence replaced by
// U+FFFD; leaves what more bytes could make a character.
std::string take_text(std::string_view& bytes);
// All of `text` like that; one replacement more for a character that is not finished.
std::string replace_ill_formed(std::string_view text);

// True for a byte that continues a UTF-8 character.
inline bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// The largest position <= `position` at which a character of the valid UTF-8 `text` begins
// (or its end).
std::size_t character_border(std::string_view text, std::size_t position);

}  // namespace chaski
