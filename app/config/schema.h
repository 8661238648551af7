#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "app/config/config.h"

namespace chaski {

// The one table of the config's keys. Reading a config, its complete printout, the hints for
// mistyped keys and docs/config.md all come from it.

// A reference to a member of an enumeration type; its values number the key's choices.
struct ChoiceReference {
  void* member;
  int (*get)(const void* member);
  void (*set)(void* member, int value);
};
template <class Enum>
ChoiceReference choice(Enum& member) {
  return {&member, [](const void* m) { return static_cast<int>(*static_cast<const Enum*>(m)); },
          [](void* m, int value) { *static_cast<Enum*>(m) = static_cast<Enum>(value); }};
}

// The member of a TrainConfig that a key sets.
using ConfigField =
    std::variant<std::int64_t*, double*, bool*, std::string*, std::vector<std::string>*,
                 std::array<double, 2>*, CountOrRatio*, ChoiceReference>;

// Allowed values of a number, or of each number of an array.
struct ConfigRange {
  double minimum = -std::numeric_limits<double>::infinity();
  double maximum = std::numeric_limits<double>::infinity();
  bool minimum_excluded = false;
  bool maximum_excluded = false;

  bool contains(double value) const;
  // "at least 1"; empty where everything is allowed. The largest counts are limits of arithmetic,
  // of no interest to a reader: they are only told together with a value that exceeds them.
  std::string text() const { return text(minimum); }
  std::string text(double value) const;
};

struct ConfigKey {
  std::string table{};  // dotted where it stands in another: "model.moc"
  std::string name{};
  ConfigField (*field)(TrainConfig& config) = nullptr;
  std::string documentation{};  // without a full stop
  ConfigRange range{};
  std::vector<std::string> choices{};
  std::string default_text{};  // in words, where the default is not the member's initial value
  std::vector<std::string> synonyms{};  // what other programs call it: for hints

  std::string dotted_name() const { return table + "." + name; }
  std::string type_text() const;     // "an integer"
  std::string allowed_text() const;  // of range and choices; empty where the type says it all
  // The value that `config` has, as TOML.
  std::string value_text(const TrainConfig& config) const;
};

struct ConfigTable {
  std::string name;
  std::string documentation;
  std::vector<ConfigKey> keys;
  // A choice without which its keys have no effect, and are refused.
  struct Condition {
    std::string key;  // dotted; empty: they always have
    std::string choice;
  } needs{};
};

// Tables and their keys in the order in which they are printed.
const std::vector<ConfigTable>& config_tables();
// Null where there is none.
const ConfigTable* find_config_table(std::string_view name);
const ConfigKey* find_config_key(std::string_view dotted_name);

// What to do about a key or table that does not exist: the nearest one, or those there are.
std::string hint_for_unknown_key(const std::string& table, const std::string& name);
std::string hint_for_unknown_table(const std::string& name);

// docs/config.md.
std::string config_reference();

}  // namespace chaski
