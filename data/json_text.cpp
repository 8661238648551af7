#include "data/json_text.h"

#include <cctype>
#include <cstdint>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/utf8.h"

namespace chaski {
namespace {

std::string missing_key(const std::string& key) {
  return fmt::format("has no key \"{}\"", key);
}
std::string repeated_key(const std::string& key) {
  return fmt::format("has the key \"{}\" twice", key);
}
std::string not_a_string(const std::string& key) {
  return fmt::format("holds something else than a string under \"{}\"", key);
}

// Takes the string under one top-level key and lets everything else pass.
class TextHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit TextHandler(const std::string& key) : key_(key) {}

  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t) override { return other(); }
  bool number_unsigned(number_unsigned_t) override { return other(); }
  bool number_float(number_float_t, const string_t&) override { return other(); }
  bool binary(binary_t&) override { return other(); }
  bool string(string_t& value) override {
    if (depth_ == 0) throw JsonTextError{"is not a JSON object"};
    if (depth_ == 1 && wanted_) {
      text = std::move(value);
      wanted_ = false;
    }
    return true;
  }
  bool start_object(std::size_t) override { return enter(false); }
  bool start_array(std::size_t) override { return enter(true); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (depth_ != 1 || name != key_) return true;
    if (found) throw JsonTextError{repeated_key(key_)};
    found = wanted_ = true;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    const std::string what = error.what();
    JsonTextError failure{fmt::format("is not valid JSON at byte {} of the line", position)};
    failure.lone_surrogate = what.find("surrogate") != std::string::npos;
    if (failure.lone_surrogate) failure.message += " (half a surrogate pair)";
    throw failure;
  }

  std::string text;
  bool found = false;

 private:
  bool other() {
    if (depth_ == 0) throw JsonTextError{"is not a JSON object"};
    if (depth_ == 1 && wanted_) throw JsonTextError{not_a_string(key_)};
    return true;
  }
  bool enter(bool array) {
    if (depth_ == 0 && array) throw JsonTextError{"is not a JSON object"};
    if (depth_ > 0) other();
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }

  const std::string& key_;
  int depth_ = 0;
  bool wanted_ = false;
};

// Hexadecimal value of 4 digits, or -1.
int hexadecimal(std::string_view digits) {
  if (digits.size() < 4) return -1;
  int value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = digits[i];
    if (!std::isxdigit(static_cast<unsigned char>(c))) return -1;
    value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return value;
}

bool is_high(int unit) {
  return unit >= 0xD800 && unit < 0xDC00;
}
bool is_low(int unit) {
  return unit >= 0xDC00 && unit < 0xE000;
}

std::string replace_lone_surrogates(std::string line) {
  for (std::size_t i = 0; i + 1 < line.size(); ++i) {
    if (line[i] != '\\') continue;
    if (line[i + 1] != 'u') {
      ++i;
      continue;
    }
    const std::string_view rest = std::string_view(line).substr(i + 2);
    const int unit = hexadecimal(rest);
    if (is_high(unit) && rest.substr(4).starts_with("\\u") && is_low(hexadecimal(rest.substr(6)))) {
      i += 11;
    } else if (is_high(unit) || is_low(unit)) {
      line.replace(i + 2, 4, "fffd");
      i += 5;
    }
  }
  return line;
}

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

[[noreturn]] void malformed() {
  throw JsonTextError{"is not valid JSON"};
}

}  // namespace

std::string json_text(const std::string& line, const std::string& key, bool replace_surrogates) {
  TextHandler handler(key);
  try {
    nlohmann::json::sax_parse(line, &handler);
  } catch (const JsonTextError& error) {
    if (!error.lone_surrogate || !replace_surrogates) throw;
    return json_text(replace_lone_surrogates(line), key, false);
  }
  if (!handler.found) throw JsonTextError{missing_key(key)};
  return std::move(handler.text);
}

JsonTextStream::JsonTextStream(std::string key, bool replace_surrogates, Sink sink)
    : key_(std::move(key)), replace_surrogates_(replace_surrogates), sink_(std::move(sink)) {}

void JsonTextStream::feed(std::string_view bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (state_ == State::key || state_ == State::string) {
      i = plain_run(bytes, i);
      if (i < bytes.size()) string_character(bytes[i]);
    } else if (state_ == State::other) {
      other_value(bytes[i]);
    } else {
      structure(bytes[i]);
    }
  }
}

void JsonTextStream::finish() {
  if (state_ != State::end) malformed();
  if (!found_) throw JsonTextError{missing_key(key_)};
}

// Hands on the characters of a string that stand for themselves; the position after them.
std::size_t JsonTextStream::plain_run(std::string_view bytes, std::size_t begin) {
  if (escape_ != 0) return begin;
  std::size_t end = begin;
  while (end < bytes.size() && bytes[end] != '"' && bytes[end] != '\\') {
    if (static_cast<unsigned char>(bytes[end]) < 0x20) malformed();
    ++end;
  }
  if (end > begin) {
    lone_surrogate();
    emit(bytes.substr(begin, end - begin));
  }
  return end;
}

void JsonTextStream::string_character(char c) {
  if (escape_ != 0) {
    escape_character(c);
  } else if (c == '\\') {
    escape_ = 1;
  } else {
    lone_surrogate();
    end_of_string();
  }
}

void JsonTextStream::escape_character(char c) {
  if (escape_ >= 2) {
    if (!std::isxdigit(static_cast<unsigned char>(c))) malformed();
    unit_ = unit_ * 16 + static_cast<unsigned>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    if (++escape_ == 6) {
      escape_ = 0;
      code_unit(unit_);
    }
    return;
  }
  if (c == 'u') {
    escape_ = 2;
    unit_ = 0;
    return;
  }
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
  const std::size_t index = kNames.find(c);
  if (index == std::string_view::npos) malformed();
  lone_surrogate();
  emit(kValues.substr(index, 1));
  escape_ = 0;
}

void JsonTextStream::code_unit(unsigned unit) {
  if (high_surrogate_ != 0 && is_low(static_cast<int>(unit))) {
    const unsigned high = std::exchange(high_surrogate_, 0);
    emit_code_point(0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00));
    return;
  }
  lone_surrogate();
  if (is_high(static_cast<int>(unit))) {
    high_surrogate_ = unit;
  } else if (is_low(static_cast<int>(unit))) {
    high_surrogate_ = unit;
    lone_surrogate();
  } else {
    emit_code_point(unit);
  }
}

// A high surrogate is waiting for its other half, which does not come.
void JsonTextStream::lone_surrogate() {
  if (high_surrogate_ == 0) return;
  high_surrogate_ = 0;
  if (!replace_surrogates_) {
    throw JsonTextError{"is not valid JSON (half a surrogate pair)", true};
  }
  emit(kReplacementCharacter);
}

void JsonTextStream::structure(char c) {
  if (is_space(c)) return;
  switch (state_) {
    case State::start:
      if (c != '{') throw JsonTextError{"is not a JSON object"};
      state_ = State::key_or_end;
      return;
    case State::key_or_end:
      if (c == '}') {
        state_ = State::end;
      } else if (c == '"') {
        name_.clear();
        target_ = Target::key;
        state_ = State::key;
      } else {
        malformed();
      }
      return;
    case State::colon:
      if (c != ':') malformed();
      state_ = State::value;
      return;
    case State::value:
      begin_value(c);
      return;
    case State::comma_or_end:
      if (c != ',' && c != '}') malformed();
      state_ = c == ',' ? State::key_or_end : State::end;
      return;
    default:
      malformed();
  }
}

void JsonTextStream::begin_value(char c) {
  const bool wanted = name_ == key_;
  if (wanted && found_) throw JsonTextError{repeated_key(key_)};
  if (wanted && c != '"') throw JsonTextError{not_a_string(key_)};
  found_ = found_ || wanted;
  depth_ = 0;
  inner_string_ = false;
  if (c == '"') {
    target_ = wanted ? Target::text : Target::none;
    state_ = State::string;
  } else {
    state_ = State::other;
    other_value(c);
  }
}

// Inside a value that is not wanted: numbers, words, arrays and objects.
void JsonTextStream::other_value(char c) {
  if (inner_string_) {
    if (inner_escape_) {
      inner_escape_ = false;
    } else if (c == '\\') {
      inner_escape_ = true;
    } else if (c == '"') {
      inner_string_ = false;
    }
    return;
  }
  if (c == '"') {
    inner_string_ = true;
  } else if (c == '{' || c == '[') {
    ++depth_;
  } else if (depth_ > 0 && (c == '}' || c == ']')) {
    --depth_;
  } else if (depth_ == 0 && (c == ',' || c == '}')) {
    state_ = State::comma_or_end;
    structure(c);
  }
}

void JsonTextStream::end_of_string() {
  state_ = state_ == State::key ? State::colon : State::comma_or_end;
}

void JsonTextStream::emit(std::string_view text) {
  if (target_ == Target::text) {
    sink_(text);
  } else if (target_ == Target::key && name_.size() <= key_.size()) {
    // A name longer than the wanted one stays different however it goes on.
    name_.append(text);
  }
}

void JsonTextStream::emit_code_point(unsigned c) {
  char bytes[4];
  std::size_t length = 0;
  const auto add = [&](unsigned value) { bytes[length++] = static_cast<char>(value); };
  if (c < 0x80) {
    add(c);
  } else if (c < 0x800) {
    add(0xC0 | (c >> 6));
    add(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    add(0xE0 | (c >> 12));
    add(0x80 | ((c >> 6) & 0x3F));
    add(0x80 | (c & 0x3F));
  } else {
    add(0xF0 | (c >> 18));
    add(0x80 | ((c >> 12) & 0x3F));
    add(0x80 | ((c >> 6) & 0x3F));
    add(0x80 | (c & 0x3F));
  }
  emit({bytes, length});
}

}  // namespace chaski
