#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace chaski {

// What went wrong in a JSON line, for the caller to put file and line before it.
struct JsonTextError {
  std::string message;
  bool lone_surrogate = false;  // a \uD800…\uDFFF escape without its other half
};

// The string under `key` of the JSON object `line` (valid UTF-8). Throws JsonTextError where the
// line is no JSON object, has no such key or has it twice, or holds something else under it.
// With `replace_surrogates` a lone surrogate becomes U+FFFD instead of an error.
std::string json_text(const std::string& line, const std::string& key, bool replace_surrogates);

// The same for a line too large to be held: takes the line in pieces and hands out the text in
// pieces. Structure and escapes are checked as far as finding the text needs it: a malformed
// number elsewhere in such a line goes unnoticed.
class JsonTextStream {
 public:
  using Sink = std::function<void(std::string_view)>;

  JsonTextStream(std::string key, bool replace_surrogates, Sink sink);

  void feed(std::string_view bytes);
  void finish();  // after the last byte of the line

 private:
  enum class State { start, key_or_end, key, colon, value, string, other, comma_or_end, end };
  enum class Target { key, text, none };  // where the characters of a string go

  std::size_t plain_run(std::string_view bytes, std::size_t begin);
  void string_character(char c);
  void escape_character(char c);
  void code_unit(unsigned unit);
  void lone_surrogate();
  void structure(char c);
  void begin_value(char c);
  void other_value(char c);
  void end_of_string();
  void emit(std::string_view text);
  void emit_code_point(unsigned code_point);

  std::string key_;
  bool replace_surrogates_;
  Sink sink_;
  State state_ = State::start;
  Target target_ = Target::none;
  std::string name_;  // of the member being read
  bool found_ = false;
  int depth_ = 0;  // of arrays and objects inside a member's value
  bool inner_string_ = false;
  bool inner_escape_ = false;
  int escape_ = 0;  // 0: none, 1: after the backslash, 2…5: hexadecimal digits to come
  unsigned unit_ = 0;
  unsigned high_surrogate_ = 0;
};

}  // namespace chaski
