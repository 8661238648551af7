#include "app/config/toml.h"

#include <cmath>
#include <fmt/format.h>
#include <string>

#include "app/config/schema.h"

namespace chaski {
namespace {

std::string default_of(const ConfigKey& key) {
  if (key.default_text == "required") return "required";
  return "default " + (key.default_text.empty() ? key.value_text(TrainConfig{}) : key.default_text);
}

// "documentation (what is allowed; default)", in lines that fit a terminal.
std::string comment_of(const ConfigKey& key) {
  constexpr std::size_t kWidth = 98;
  const std::string allowed = key.allowed_text();
  const std::string text = fmt::format("{} ({}{}{})", key.documentation, allowed,
                                       allowed.empty() ? "" : "; ", default_of(key));
  std::string comment, line = "#";
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (line.size() + 1 + word.size() > kWidth) {
      comment += line + "\n";
      line = "#  ";
    }
    line += " " + word;
    begin = end + 1;
  }
  return comment + line + "\n";
}

}  // namespace

std::string quote_toml(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      quoted += fmt::format("\\u{:04X}", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string double_to_toml(double value) {
  std::string text = fmt::format("{}", value);
  if (std::isfinite(value) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string to_toml(const TrainConfig& config, bool comments) {
  std::string text;
  for (const ConfigTable& table : config_tables()) {
    // Refused where it has no effect.
    if (table.name == "model.moc" && config.model.ffn != FeedForwardKind::moc) continue;
    if (!text.empty()) text += "\n";
    if (comments) text += fmt::format("# {}.\n", table.documentation);
    text += fmt::format("[{}]\n", table.name);
    for (const ConfigKey& key : table.keys) {
      if (comments) text += comment_of(key);
      text += fmt::format("{} = {}\n", key.name, key.value_text(config));
    }
  }
  return text;
}

}  // namespace chaski
