#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/fault/checkpoint/mutation.h"

namespace chaski {

// Damages text that has structure (TOML, JSON): besides what Mutator does to bytes it puts extreme
// numbers in the place of numbers and values in the place of others, doubles, swaps and removes
// lines and members, breaks UTF-8, nests without end and makes things very long.
class TextMutator {
 public:
  explicit TextMutator(std::uint64_t seed) : bytes_(seed), random_(seed + 1) {}

  // Always different from `original`.
  std::string mutate(const std::string& original) {
    std::string text = original;
    do {
      for (std::uint64_t count = 1 + below(3); count > 0; --count) change(text);
    } while (text == original);
    return text;
  }

 private:
  std::uint64_t below(std::uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }
  template <class List>
  const auto& one_of(const List& list) {
    return list[below(std::size(list))];
  }

  void change(std::string& text) {
    switch (below(10)) {
      case 0:
      case 1: {
        const std::vector<char> mutant = bytes_.mutate({text.begin(), text.end()});
        text.assign(mutant.begin(), mutant.end());
        break;
      }
      case 2:
      case 3:
        return replace_number(text);
      case 4:
        return replace_value(text);
      case 5:
        return rearrange(text, '\n');
      case 6:
        return rearrange(text, ',');
      case 7:
        return break_utf8(text);
      case 8:
        return nest(text);
      default:
        return lengthen(text);
    }
  }

  void replace_number(std::string& text) {
    static const std::string kNumbers[] = {"0",
                                           "-0",
                                           "-1",
                                           "1",
                                           "2",
                                           "3",
                                           "65535",
                                           "65537",
                                           "2147483647",
                                           "2147483648",
                                           "4294967296",
                                           "1099511627776",
                                           "9223372036854775807",
                                           "-9223372036854775808",
                                           "9223372036854775808",
                                           "18446744073709551615",
                                           "18446744073709551616",
                                           "1e18",
                                           "1e308",
                                           "-1e308",
                                           "1e999",
                                           "1e-320",
                                           "0.1",
                                           "nan",
                                           "-inf",
                                           "0x7fffffffffffffff",
                                           "1_000",
                                           "007"};
    const std::size_t from = below(text.size());
    const auto is_digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
    const auto begin =
        std::find_if(text.begin() + static_cast<std::ptrdiff_t>(from), text.end(), is_digit);
    const auto end = std::find_if_not(begin, text.end(), is_digit);
    text.replace(begin, end, one_of(kNumbers));
  }

  void replace_value(std::string& text) {
    static const std::string kValues[] = {"true",
                                          "null",
                                          "\"\"",
                                          "\"x\"",
                                          "[]",
                                          "{}",
                                          "[1,[2,[3]]]",
                                          "{\"a\":{\"b\":1}}",
                                          "1979-05-27T07:32:00Z",
                                          "\"\\u0000\"",
                                          "\"\\ud800\"",
                                          "'''\n'''",
                                          "a.b.c",
                                          "[[x]]"};
    std::size_t at = text.find_first_of("=:", below(text.size()));
    if (at == std::string::npos) return;
    const std::size_t end = text.find_first_of(",\n}", ++at);
    text.replace(at, end == std::string::npos ? end : end - at, " " + one_of(kValues));
  }

  // Doubles, removes or swaps pieces between separators: duplicated keys, missing ones.
  void rearrange(std::string& text, char separator) {
    std::vector<std::string> pieces(1);
    for (const char c : text) {
      if (c == separator)
        pieces.emplace_back();
      else
        pieces.back() += c;
    }
    const std::size_t a = below(pieces.size()), b = below(pieces.size());
    switch (below(3)) {
      case 0:
        pieces.insert(pieces.begin() + static_cast<std::ptrdiff_t>(b), std::string(pieces[a]));
        break;
      case 1:
        pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(a));
        break;
      default:
        std::swap(pieces[a], pieces[b]);
    }
    text.clear();
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (i > 0) text += separator;
      text += pieces[i];
    }
  }

  void break_utf8(std::string& text) {
    static const std::string kBroken[] = {"\xff",         "\xc0\x80",
                                          "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                          "\xe2\x82",     "\xf0\x9f\x98",
                                          "\xef\xbb\xbf", "\x80",
                                          "\x7f",         std::string(1, '\0'),
                                          "\xe2\x80\xa8", "\x1b[31m",
                                          "\\u12",        "\\"};
    text.insert(below(text.size() + 1), one_of(kBroken));
  }

  void nest(std::string& text) {
    static const std::string kOpenings[] = {"[", "{\"a\":", "{a=", "[{", "(", "a."};
    const std::string& opening = one_of(kOpenings);
    std::string deep;
    for (std::uint64_t depth = 1 + below(below(4) == 0 ? 20000 : 40); depth > 0; --depth)
      deep += opening;
    const std::size_t at = text.find_first_of("=:", below(text.size()));
    text.insert(at == std::string::npos ? text.size() : at + 1, deep);
  }

  void lengthen(std::string& text) {
    static const char kFill[] = {'a', '9', ' ', '\n', '"', '-', '_', '\t', '#'};
    text.insert(below(text.size() + 1),
                std::string(1 + below(below(8) == 0 ? 100000 : 300), one_of(kFill)));
  }

  Mutator bytes_;
  std::mt19937_64 random_;
};

}  // namespace chaski
