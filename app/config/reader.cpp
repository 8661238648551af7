#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <toml++/toml.h>
#include <utility>

#include "app/config/checks.h"
#include "app/config/schema.h"
#include "app/config/stored_config.h"
#include "app/config/toml.h"
#include "app/config/value.h"
#include "data/utf8.h"

namespace chaski {
namespace {

// toml++ 3.3 relies on a key's beginning behind '[' at the start of a line without checking it, and
// goes astray on "[.a]" or "[=]". No value of a config has a line that begins so.
void check_table_headers(std::string_view text, const std::string& source) {
  constexpr std::string_view kBlank = " \t";
  int line_number = 0;
  while (!text.empty()) {
    ++line_number;
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    // A byte-order mark and the blanks of other alphabets are blank to toml++, too.
    const auto is_blank = [](char c) { return static_cast<signed char>(c) <= 0x20; };
    const std::size_t begin = static_cast<std::size_t>(
        std::find_if_not(line.begin(), line.end(), is_blank) - line.begin());
    if (begin == line.size() || line[begin] != '[') continue;
    const bool array = line.substr(begin, 2) == "[[";
    const std::size_t name = line.find_first_not_of(kBlank, begin + (array ? 2 : 1));
    const char first = name == std::string_view::npos ? '\n' : line[name];
    const bool starts_key = std::isalnum(static_cast<unsigned char>(first)) || first == '_' ||
                            first == '-' || first == '"' || first == '\'' || first == ']';
    if (starts_key) continue;
    refuse_config(fmt::format("{}:{}", source, line_number), "not valid TOML: no name follows '['",
                  "a table is written [run]");
  }
}

// Collects the values of a file and of --set, then makes a config of them.
class ConfigReader {
 public:
  // What the file has and this version does not know is an error, or is named in `unknown`.
  ConfigReader(std::string source, StepsAre steps, std::vector<std::string>* unknown = nullptr)
      : source_(std::move(source)), steps_(steps), unknown_(unknown) {}

  void read_file(std::string_view text) { read_table("", parse(text, source_)); }

  void read_override(const std::string& argument) {
    const ConfigOrigin origin = "--set " + argument;
    const std::size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::size_t dot = name.rfind('.');
    if (equals == std::string::npos || dot == std::string::npos) {
      refuse_config(origin, "this is not of the form table.key=value",
                    "for example --set optimizer.lr=0.001");
    }
    const std::string table = name.substr(0, dot);
    if (!find_config_table(table)) refuse_table(table, origin);
    const ConfigKey* key = find_config_key(name);
    if (!key) refuse_key(table, name.substr(dot + 1), origin);
    given_[key] = {&override_value(*key, argument.substr(equals + 1), origin), origin};
  }

  TrainConfig config() {
    TrainConfig config;
    assign(config, "model.preset");
    if (!config.model.preset.empty()) take_preset(config);
    for (const auto& [key, value] : given_) {
      assign_config_value(config, *key, *value.node, value.origin);
    }
    located([&] { resolve(config); });
    located([&] { check_config(config); });
    return config;
  }

 private:
  struct Given {
    const toml::node* node;
    ConfigOrigin origin;
  };

  const toml::table& parse(std::string_view text, const std::string& source) {
    check_table_headers(text, source);
    try {
      return documents_.emplace_back(toml::parse(text));
    } catch (const toml::parse_error& error) {
      refuse_config(fmt::format("{}:{}", source, error.source().begin.line),
                    "not valid TOML: " + std::string(error.description()),
                    "strings stand in quotes, keys below their [table]");
    }
  }

  [[noreturn]] static void refuse_table(const std::string& name, const ConfigOrigin& origin) {
    refuse_config(origin, fmt::format("unknown table [{}]", name), hint_for_unknown_table(name));
  }

  [[noreturn]] static void refuse_key(const std::string& table, const std::string& name,
                                      const ConfigOrigin& origin) {
    refuse_config(origin, "unknown key " + dotted(table, name), hint_for_unknown_key(table, name));
  }

  static std::string dotted(const std::string& table, const std::string& name) {
    return table.empty() ? name : table + "." + name;
  }

  // The whole file's table has no name.
  void read_table(const std::string& table_name, const toml::table& table) {
    for (const auto& [key_name, node] : table) {
      const ConfigOrigin origin = fmt::format("{}:{}", source_, key_name.source().begin.line);
      const std::string name = dotted(table_name, std::string(key_name.str()));
      if (const ConfigKey* key = find_config_key(name)) {
        given_[key] = {&node, origin};
      } else if (node.is_table() && find_config_table(name)) {
        read_table(name, *node.as_table());
      } else if (unknown_) {
        unknown_->push_back(name);
      } else if (node.is_table()) {
        refuse_table(name, origin);
      } else {
        refuse_key(table_name, std::string(key_name.str()), origin);
      }
    }
  }

  // The value of an override: TOML where it is, else the text itself. So too where the key wants a
  // string and the text would read as something else (a run's name of digits).
  const toml::node& override_value(const ConfigKey& key, const std::string& text,
                                   const ConfigOrigin& origin) {
    TrainConfig scratch;
    const ConfigField field = key.field(scratch);
    const bool wants_string = std::holds_alternative<std::string*>(field) ||
                              std::holds_alternative<ChoiceReference>(field);
    const bool wants_strings = std::holds_alternative<std::vector<std::string>*>(field);
    if (text.find('\n') != std::string::npos || valid_utf8_prefix(text) != text.size()) {
      refuse_config(origin, "the value must be one line of UTF-8", "");
    }
    if (const toml::node* node = parse_value(text)) {
      const bool fits = wants_string    ? node->is_string()
                        : wants_strings ? node->is_string() || node->is_array()
                                        : true;
      if (fits) return *node;
    } else if (!text.empty() && std::strchr("[{\"'", text[0])) {
      refuse_config(origin, "the value is not valid TOML",
                    "quote it from the shell: --set 'a.b=[\"x\", \"y\"]'");
    }
    return *documents_.emplace_back(toml::table{{"value", text}}).get("value");
  }

  const toml::node* parse_value(const std::string& text) {
    try {
      toml::table parsed = toml::parse("value = " + text);
      if (parsed.size() != 1) return nullptr;
      return documents_.emplace_back(std::move(parsed)).get("value");
    } catch (const toml::parse_error&) {
      return nullptr;
    }
  }

  bool is_given(std::string_view dotted_name) const {
    return given_.count(find_config_key(dotted_name)) > 0;
  }

  void assign(TrainConfig& config, std::string_view dotted_name) const {
    const ConfigKey* key = find_config_key(dotted_name);
    const auto found = given_.find(key);
    if (found == given_.end()) return;
    assign_config_value(config, *key, *found->second.node, found->second.origin);
  }

  // A preset's derived sizes are derived anew where a key that they come from is given.
  void take_preset(TrainConfig& config) const {
    config.model.llama = llama_preset(config.model.preset);
    if (is_given("model.num_heads")) config.model.llama.num_kv_heads = 0;
    if (is_given("model.num_heads") || is_given("model.hidden_size")) {
      config.model.llama.head_dim = 0;
    }
  }

  void resolve(TrainConfig& config) const {
    require_shape(config);
    for (const ConfigTable& table : config_tables()) refuse_idle_keys(config, table);
    resolve_moc(config.model);
    config.model.llama.resolve();
    if (config.model.llama.moc) config.model.moc.keep.count = config.model.llama.moc->keep;
    if (config.run.output.empty()) config.run.output = "runs/" + config.run.name;
    ScheduleConfig& schedule = config.schedule;
    if (!is_given("schedule.steps")) {
      if (steps_ == StepsAre::optional) return;
      throw std::invalid_argument(
          "schedule.steps is missing: a run needs its number of steps\nhint: set it in [schedule] "
          "or with --set schedule.steps=1000");
    }
    if (!is_given("schedule.warmup_steps")) schedule.warmup_steps = schedule.steps / 10;
    if (!is_given("schedule.decay_steps") && schedule.kind == DecayKind::warmup_stable_decay) {
      schedule.decay_steps = schedule.steps / 5;
    }
  }

  void resolve_moc(ModelConfig& model) const {
    if (model.ffn != FeedForwardKind::moc) return;
    CountOrRatio& keep = model.moc.keep;
    if (keep.ratio > 0.0) keep = {.count = kept_of_ratio(model)};
    model.llama.moc = MocConfig{keep.count, model.moc.pattern, model.moc.selection};
  }

  // With the pattern 2:8 a quarter is what that keeps, whatever is left after the last eight.
  static std::int64_t kept_of_ratio(const ModelConfig& model) {
    const double ratio = model.moc.keep.ratio;
    const std::int64_t channels = model.llama.intermediate_size;
    if (model.moc.pattern == MocPattern::two_of_eight) {
      if (ratio == 0.25) return MocShape::kept_of_eight(channels);
      throw std::invalid_argument(
          fmt::format("model.moc.keep = {} is not allowed: model.moc.pattern = \"2:8\" keeps a "
                      "quarter\nhint: leave model.moc.keep out",
                      ratio));
    }
    return std::max<std::int64_t>(1, std::llround(ratio * static_cast<double>(channels)));
  }

  // A table's keys where it has no effect, unless their values are the defaults.
  void refuse_idle_keys(const TrainConfig& config, const ConfigTable& table) const {
    if (table.needs.key.empty()) return;
    const ConfigKey& condition = *find_config_key(table.needs.key);
    const std::string chosen = condition.value_text(config);
    const std::string needed = quote_toml(table.needs.choice);
    if (chosen == needed) return;
    for (const auto& [key, value] : given_) {
      if (key->table != table.name) continue;
      TrainConfig set;
      assign_config_value(set, *key, *value.node, value.origin);
      if (set == TrainConfig{}) continue;
      throw std::invalid_argument(fmt::format("{} has no effect with {} = {}\nhint: set {} = {}",
                                              key->dotted_name(), table.needs.key, chosen,
                                              table.needs.key, needed));
    }
  }

  void require_shape(const TrainConfig& config) const {
    if (!config.model.preset.empty()) return;
    for (const char* name : {"model.hidden_size", "model.intermediate_size", "model.num_layers",
                             "model.num_heads", "model.vocab_size"}) {
      if (is_given(name)) continue;
      throw std::invalid_argument(fmt::format(
          "{} is missing: without model.preset the shape must be given\nhint: set it, or "
          "model.preset to {}",
          name, find_config_key("model.preset")->allowed_text()));
    }
  }

  // Runs a check of the whole config; an error is led by where the first key that it names was
  // given.
  template <class Check>
  void located(const Check& check) const {
    try {
      check();
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(origin_of_error(error.what()) + ": " + error.what());
    }
  }

  ConfigOrigin origin_of_error(const std::string& message) const {
    std::size_t first = std::string::npos, length = 0;
    const ConfigKey* named = nullptr;
    for (const ConfigTable& table : config_tables()) {
      for (const ConfigKey& key : table.keys) {
        const std::string name = key.dotted_name();
        const std::size_t position = message.find(name);
        if (position == std::string::npos || position > first) continue;
        if (position == first && name.size() < length) continue;
        first = position;
        length = name.size();
        named = &key;
      }
    }
    const auto found = given_.find(named);
    return found == given_.end() ? source_ : found->second.origin;
  }

  std::string source_;
  StepsAre steps_;
  std::vector<std::string>* unknown_;
  std::deque<toml::table> documents_;  // own the nodes
  std::map<const ConfigKey*, Given> given_;
};

std::string read_text(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    refuse_config(path, "this is a folder, not a config", "give a .toml file");
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    refuse_config(path, fmt::format("the config cannot be read: {}", std::strerror(errno)),
                  "configs/ has examples; docs/config.md explains every key");
  }
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TrainConfig load_config(const std::string& path, const std::vector<std::string>& overrides,
                        StepsAre steps) {
  return parse_config(read_text(path), path, overrides, steps);
}

TrainConfig parse_config(std::string_view text, const std::string& source,
                         const std::vector<std::string>& overrides, StepsAre steps) {
  ConfigReader reader(source, steps);
  reader.read_file(text);
  for (const std::string& argument : overrides) reader.read_override(argument);
  return reader.config();
}

StoredConfig parse_stored_config(std::string_view text, const std::string& source) {
  StoredConfig stored;
  ConfigReader reader(source, StepsAre::required, &stored.unknown);
  reader.read_file(text);
  stored.config = reader.config();
  return stored;
}

}  // namespace chaski
