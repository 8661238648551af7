#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <string>
#include <variant>
#include <vector>

#include "app/config/nearest_name.h"
#include "app/config/schema.h"
#include "app/config/toml.h"

namespace chaski {
namespace {

template <class... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};
template <class... Visitors>
Overloaded(Visitors...) -> Overloaded<Visitors...>;

template <class Visitor>
auto visit_member(const ConfigKey& key, const TrainConfig& config, const Visitor& visitor) {
  // Fields refer to a config that may be written; what is read here is not.
  return std::visit(visitor, key.field(const_cast<TrainConfig&>(config)));
}

std::string quoted_list(std::vector<std::string> words) {
  std::transform(words.begin(), words.end(), words.begin(), quote_toml);
  return fmt::format("{}", fmt::join(words, ", "));
}

// Of tables, or of a table's keys.
template <class Named>
std::vector<std::string> names_of(const std::vector<Named>& all) {
  std::vector<std::string> names;
  for (const Named& one : all) names.push_back(one.name);
  return names;
}

std::string list_of_keys(const ConfigTable& table) {
  return fmt::format("{}", fmt::join(names_of(table.keys), ", "));
}

std::string list_of_tables() {
  return fmt::format("[{}]", fmt::join(names_of(config_tables()), "], ["));
}

// The key that was meant by a wrong one, or null: what other programs call it, the same name in
// another table, the nearest name in the table, the nearest of all.
const ConfigKey* key_meant(const std::string& table, const std::string& name) {
  const ConfigKey* elsewhere = nullptr;
  std::vector<std::string> names_here, names_everywhere;
  for (const ConfigTable& other : config_tables()) {
    const bool here = other.name == table;
    if (here) names_here = names_of(other.keys);
    for (const ConfigKey& key : other.keys) {
      const bool is_synonym =
          std::find(key.synonyms.begin(), key.synonyms.end(), name) != key.synonyms.end();
      if (here && is_synonym) return &key;
      if (!elsewhere && (is_synonym || key.name == name)) elsewhere = &key;
      names_everywhere.push_back(key.dotted_name());
    }
  }
  const std::string nearest_here = nearest_name(name, names_here);
  // A slip of one or two letters is likelier than another program's word of another table.
  if (!nearest_here.empty() && (!elsewhere || edit_distance(name, nearest_here) <= 2)) {
    return find_config_key(table + "." + nearest_here);
  }
  if (elsewhere) return elsewhere;
  return find_config_key(nearest_name(table + "." + name, names_everywhere));
}

}  // namespace

bool ConfigRange::contains(double value) const {
  const bool above = minimum_excluded ? value > minimum : value >= minimum;
  const bool below = maximum_excluded ? value < maximum : value <= maximum;
  return above && below;
}

std::string ConfigRange::text(double value) const {
  const bool bounded_below = minimum > -std::numeric_limits<double>::infinity();
  const bool bounded_above = maximum < std::numeric_limits<double>::infinity();
  const bool worth_telling = bounded_above && (maximum < 1e6 || value > maximum);
  if (bounded_below && worth_telling && !minimum_excluded && !maximum_excluded) {
    return fmt::format("from {} to {}", minimum, maximum);
  }
  std::string text;
  if (bounded_below) {
    text = fmt::format("{} {}", minimum_excluded ? "above" : "at least", minimum);
  }
  if (worth_telling) {
    if (!text.empty()) text += " and ";
    text += fmt::format("{} {}", maximum_excluded ? "below" : "at most", maximum);
  }
  return text;
}

std::string ConfigKey::type_text() const {
  TrainConfig config;
  return std::visit(
      Overloaded{[](std::int64_t*) { return "an integer"; }, [](double*) { return "a number"; },
                 [](bool*) { return "true or false"; }, [](std::string*) { return "a string"; },
                 [](std::vector<std::string>*) { return "a string or an array of strings"; },
                 [](std::array<double, 2>*) { return "an array of two numbers"; },
                 [](CountOrRatio*) { return "a count or a share"; },
                 [](ChoiceReference) { return "a string"; }},
      field(config));
}

std::string ConfigKey::allowed_text() const {
  if (!choices.empty()) {
    return (choices.size() == 1 ? "" : "one of ") + quoted_list(choices);
  }
  return range.text();
}

std::string ConfigKey::value_text(const TrainConfig& config) const {
  return visit_member(*this, config,
                      Overloaded{[](std::int64_t* value) { return fmt::format("{}", *value); },
                                 [](double* value) { return double_to_toml(*value); },
                                 [](bool* value) { return std::string(*value ? "true" : "false"); },
                                 [](std::string* value) { return quote_toml(*value); },
                                 [](std::vector<std::string>* value) {
                                   return fmt::format("[{}]", quoted_list(*value));
                                 },
                                 [](std::array<double, 2>* value) {
                                   return fmt::format("[{}, {}]", double_to_toml((*value)[0]),
                                                      double_to_toml((*value)[1]));
                                 },
                                 [](CountOrRatio* value) {
                                   return value->ratio > 0.0 ? double_to_toml(value->ratio)
                                                             : fmt::format("{}", value->count);
                                 },
                                 [this](ChoiceReference reference) {
                                   return quote_toml(choices.at(
                                       static_cast<std::size_t>(reference.get(reference.member))));
                                 }});
}

std::string hint_for_unknown_key(const std::string& table, const std::string& name) {
  const std::string inner = table.empty() ? name : table + "." + name;
  if (const ConfigTable* meant = find_config_table(inner))
    return fmt::format("[{}] is a table; its keys are {}", inner, list_of_keys(*meant));
  if (const ConfigKey* meant = key_meant(table, name)) {
    const std::string which =
        meant->table == table
            ? meant->dotted_name()
            : fmt::format("{} (in table [{}])", meant->dotted_name(), meant->table);
    return fmt::format("did you mean {}? ({})", which, meant->documentation);
  }
  if (table.empty()) return "keys stand in tables: " + list_of_tables();
  return fmt::format("the keys of [{}] are {}", table, list_of_keys(*find_config_table(table)));
}

std::string hint_for_unknown_table(const std::string& name) {
  const std::string nearest = nearest_name(name, names_of(config_tables()));
  if (!nearest.empty()) return fmt::format("did you mean [{}]?", nearest);
  return "the tables are " + list_of_tables();
}

}  // namespace chaski
