#include "app/console/option_checks.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <limits>
#include <optional>
#include <string_view>

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

// "", "B", or k, M, G or T of them, of 1000 each ("kB", "k") or of 1024 ("KiB").
std::optional<double> bytes_of_unit(std::string unit) {
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (unit.empty() || unit == "b") return 1.0;
  constexpr std::string_view kPrefixes = "kmgt";
  const std::size_t prefix = kPrefixes.find(unit.front());
  const std::string rest = unit.substr(1);
  if (prefix == std::string_view::npos || !(rest.empty() || rest == "b" || rest == "ib"))
    return std::nullopt;
  return std::pow(rest == "ib" ? 1024.0 : 1000.0, static_cast<double>(prefix + 1));
}

std::optional<std::int64_t> bytes_of(const std::string& text) {
  const std::size_t digits = text.find_first_not_of("0123456789.");
  const auto count = finite_number(text.substr(0, digits));
  const std::size_t unit = text.find_first_not_of(' ', digits);
  const auto factor = bytes_of_unit(unit == std::string::npos ? std::string() : text.substr(unit));
  constexpr double kMost = 9e18;  // what 64 bits hold
  if (!count || !factor || *count * *factor > kMost) return std::nullopt;
  return std::llround(*count * *factor);
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

std::string choices_text(const std::vector<std::string>& names) {
  return fmt::format("{{{}}}", fmt::join(names, ","));
}

std::string to_bytes(std::string& text) {
  const auto bytes = bytes_of(text);
  if (!bytes)
    return fmt::format("must be a size such as 512, \"500 MB\" or 1.5GiB, not '{}'", text);
  text = std::to_string(*bytes);
  return "";
}

std::string to_positive_bytes(std::string& text) {
  if (bytes_of(text) == 0) return fmt::format("must be a size above 0, not '{}'", text);
  return to_bytes(text);
}

}  // namespace chaski
