#include "app/option_checks.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <limits>
#include <optional>

namespace chaski {
namespace {

std::optional<std::int64_t> whole_number(const std::string& text) {
  const std::size_t first_digit = text.rfind('-', 0) == 0 ? 1 : 0;
  if (text.size() > first_digit + 1 && text[first_digit] == '0') return std::nullopt;
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

std::optional<double> finite_number(const std::string& text) {
  char* rest = nullptr;
  const double value = std::strtod(text.c_str(), &rest);
  if (text.empty() || *rest != '\0' || !std::isfinite(value)) return std::nullopt;
  return value;
}

}  // namespace

OptionCheck whole_number_between(std::int64_t least, std::int64_t most) {
  return [=](const std::string& text) -> std::string {
    const auto value = whole_number(text);
    if (value && *value >= least && *value <= most) return "";
    return fmt::format("must be a whole number from {} to {}, not '{}'", least, most, text);
  };
}

OptionCheck whole_number_from(std::int64_t least) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  return
      [=, in_range = whole_number_between(least, kMost)](const std::string& text) -> std::string {
        const std::string refusal = in_range(text);
        // The limit is told to those who meet it.
        if (refusal.empty() || whole_number(text).value_or(least) > kMost) return refusal;
        return fmt::format("must be a whole number of at least {}, not '{}'", least, text);
      };
}

OptionCheck number_from(double least) {
  return [=](const std::string& text) -> std::string {
    const auto value = finite_number(text);
    if (value && *value >= least) return "";
    return fmt::format("must be a number of at least {}, not '{}'", least, text);
  };
}

OptionCheck positive_number() {
  return [](const std::string& text) -> std::string {
    if (finite_number(text).value_or(0.0) > 0.0) return "";
    return fmt::format("must be a number above 0, not '{}'", text);
  };
}

OptionCheck one_of(std::vector<std::string> names) {
  return [names = std::move(names)](const std::string& text) -> std::string {
    if (std::find(names.begin(), names.end(), text) != names.end()) return "";
    return fmt::format("must be one of {}, not '{}'", fmt::join(names, ", "), text);
  };
}

}  // namespace chaski
