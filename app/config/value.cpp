#include "app/config/value.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <stdexcept>
#include <variant>
#include <vector>

#include "app/config/toml.h"

namespace chaski {
namespace {

std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

// A value, in an error's words.
std::string describe(const toml::node& node) {
  if (const auto* value = node.as_string()) return "the string " + quote_toml(value->get());
  if (const auto* value = node.as_integer()) return fmt::format("the integer {}", value->get());
  if (const auto* value = node.as_floating_point()) {
    return fmt::format("the number {}", value->get());
  }
  if (const auto* value = node.as_boolean()) return value->get() ? "true" : "false";
  if (node.is_table()) return "a table";
  if (const auto* array = node.as_array()) {
    return array->size() == 1 ? "an array of 1 value"
                              : fmt::format("an array of {} values", array->size());
  }
  return "a date or time";
}

// Writes one value into a config after checking its type, range and choices.
class Assignment {
 public:
  Assignment(const ConfigKey& key, const toml::node& node, const ConfigOrigin& origin)
      : key_(key), node_(node), origin_(origin) {}

  void operator()(std::int64_t* member) const {
    const auto* value = node_.as_integer();
    if (!value) fail_type();
    check_range(static_cast<double>(value->get()), fmt::format("{}", value->get()));
    *member = value->get();
  }
  void operator()(double* member) const { *member = number(node_); }
  void operator()(bool* member) const {
    const auto* value = node_.as_boolean();
    if (!value) fail_type();
    *member = value->get();
  }
  void operator()(std::string* member) const {
    *member = string(node_);
    if (!key_.choices.empty() && !member->empty()) choice_index(*member);
  }
  void operator()(std::vector<std::string>* member) const {
    member->clear();
    if (node_.is_string()) {
      member->push_back(string(node_));
      return;
    }
    const auto* array = node_.as_array();
    if (!array) fail_type();
    for (const toml::node& item : *array) member->push_back(string(item));
  }
  void operator()(std::array<double, 2>* member) const {
    const auto* array = node_.as_array();
    if (!array || array->size() != 2) fail_type();
    for (std::size_t i = 0; i < 2; ++i) (*member)[i] = number(*array->get(i));
  }
  void operator()(CountOrRatio* member) const {
    if (const auto* count = node_.as_integer()) {
      if (count->get() < 1) fail_share(fmt::format("{}", count->get()));
      *member = {.count = count->get()};
      return;
    }
    const auto* ratio = node_.as_floating_point();
    if (!ratio) fail_type();
    if (!(ratio->get() > 0.0 && ratio->get() <= 1.0)) fail_share(double_to_toml(ratio->get()));
    *member = {.ratio = ratio->get()};
  }
  void operator()(ChoiceReference reference) const {
    reference.set(reference.member, choice_index(string(node_)));
  }

 private:
  [[noreturn]] void fail_type() const {
    std::string hint = key_.documentation;
    const auto* number = node_.as_floating_point();
    if (number && std::nearbyint(number->get()) == number->get() &&
        std::abs(number->get()) < 1e15) {
      hint = fmt::format("write {:.0f}", number->get());
    }
    refuse_config(origin_,
                  fmt::format("{} is {} but must be {}", key_.dotted_name(), describe(node_),
                              key_.type_text()),
                  hint);
  }

  [[noreturn]] void fail_share(const std::string& value) const {
    refuse_config(
        origin_,
        fmt::format("{} is {} but must be a count of at least 1, or a share above 0.0 and "
                    "at most 1.0",
                    key_.dotted_name(), value),
        "numbers with a point are shares: 1 is a count, 1.0 is all");
  }

  double number(const toml::node& node) const {
    if (!node.is_number()) fail_type();
    const double value = *node.value<double>();
    check_range(value, fmt::format("{}", value));
    return value;
  }

  std::string string(const toml::node& node) const {
    const auto* value = node.as_string();
    if (!value) fail_type();
    if (value->get().find('\0') != std::string::npos) {
      refuse_config(origin_, fmt::format("{} has a zero byte", key_.dotted_name()), "");
    }
    return value->get();
  }

  void check_range(double value, const std::string& text) const {
    if (std::isfinite(value) && key_.range.contains(value)) return;
    const std::string range = key_.range.text(value);
    const std::string allowed =
        std::isfinite(value)
            ? range
            : std::string("finite") + (range.empty() ? std::string() : " and " + range);
    refuse_config(origin_,
                  fmt::format("{} is {} but must be {}", key_.dotted_name(), text, allowed),
                  key_.documentation);
  }

  int choice_index(const std::string& value) const {
    for (std::size_t i = 0; i < key_.choices.size(); ++i) {
      if (key_.choices[i] == value) return static_cast<int>(i);
    }
    refuse_config(origin_,
                  fmt::format("{} is {} but must be {}", key_.dotted_name(), quote_toml(value),
                              key_.allowed_text()),
                  key_.documentation);
  }

  const ConfigKey& key_;
  const toml::node& node_;
  const ConfigOrigin& origin_;
};

}  // namespace

void refuse_config(const ConfigOrigin& origin, const std::string& message,
                   const std::string& hint) {
  throw std::invalid_argument(one_line(origin + ": " + message) +
                              (hint.empty() ? "" : "\nhint: " + one_line(hint)));
}

void assign_config_value(TrainConfig& config, const ConfigKey& key, const toml::node& value,
                         const ConfigOrigin& origin) {
  std::visit(Assignment(key, value, origin), key.field(config));
}

}  // namespace chaski
