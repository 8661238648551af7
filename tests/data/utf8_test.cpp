#include "data/utf8.h"

#include <gtest/gtest.h>
#include <string>

namespace chaski {
namespace {

// UTF-8 of any number, well-formed or not, as the definition says.
std::string encode(unsigned code, int length) {
  static constexpr unsigned kLead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  if (length == 1) return std::string(1, static_cast<char>(code));
  std::string bytes;
  for (int i = length - 1; i >= 0; --i) {
    const unsigned six = (code >> (6 * i)) & 0x3F;
    bytes += static_cast<char>(i == length - 1 ? kLead[length] | (code >> (6 * i)) : 0x80 | six);
  }
  return bytes;
}

TEST(Utf8Test, EveryCodePoint) {
  for (unsigned code = 0; code < 0x110100; ++code) {
    const int length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    const bool valid = code < 0x110000 && (code < 0xD800 || code >= 0xE000);
    const std::string bytes = encode(code, length);
    ASSERT_EQ(valid_utf8_prefix(bytes) == bytes.size(), valid) << code;
    if (length < 4) {
      ASSERT_EQ(valid_utf8_prefix(encode(code, length + 1)), 0u) << "overlong " << code;
    }
  }
}

TEST(Utf8Test, PrefixEndsWhereItGoesWrong) {
  const std::string good = "abcdefgh\u00e9\u20ac\U0001F600ijklmnopqrst";
  EXPECT_EQ(valid_utf8_prefix(good), good.size());
  EXPECT_EQ(valid_utf8_prefix(good + "\xFF" + good), good.size());
  EXPECT_EQ(valid_utf8_prefix(good + "\xE2\x82"), good.size());
  EXPECT_EQ(valid_utf8_prefix(""), 0u);
}

TEST(Utf8Test, ReplacesMaximalSubparts) {
  // The example of the Unicode standard, section 3.9.
  EXPECT_EQ(replace_ill_formed("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
}

TEST(Utf8Test, CharacterBorder) {
  const std::string text = "a\u20acb";
  EXPECT_EQ(character_border(text, 0), 0u);
  EXPECT_EQ(character_border(text, 1), 1u);
  EXPECT_EQ(character_border(text, 2), 1u);
  EXPECT_EQ(character_border(text, 3), 1u);
  EXPECT_EQ(character_border(text, 4), 4u);
  EXPECT_EQ(character_border(text, 9), 5u);
}

}  // namespace
}  // namespace chaski
