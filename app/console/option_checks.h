#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace chaski {

// Checks for the values of options, in the form that CLI::Option::check() takes: they return an
// empty text for what is allowed, and else what would be, with the value: "must be a whole number
// of at least 1, not '0'". CLI11's own checks name neither, and let NaN pass.
using OptionCheck = std::function<std::string(const std::string& text)>;

// Decimal digits, perhaps with a minus; no leading zeros, which CLI11 takes for octal.
OptionCheck whole_number_between(std::int64_t least, std::int64_t most);
// Up to what an int holds, and no further: for counts that no machine has more of.
OptionCheck whole_number_from(std::int64_t least);

// Finite.
OptionCheck number_from(double least);
OptionCheck positive_number();

OptionCheck one_of(std::vector<std::string> names);
// For --help, as the option's type_name(): "{red,blue}".
std::string choices_text(const std::vector<std::string>& names);
// Both for one of CLI11's options, which it returns.
template <typename Option>
Option* allow_only(Option* option, const std::vector<std::string>& names) {
  return option->check(one_of(names))->type_name(choices_text(names));
}

// Options that several commands have; members must outlive `command`.

// A whole number from `least` on; the help shows its default.
template <typename App, typename Number>
void add_count(App& command, const char* name, Number& number, const char* text,
               std::int64_t least = 1) {
  command.add_option(name, number, text)->check(whole_number_from(least))->capture_default_str();
}
template <typename App, typename Number>
void add_threads(App& command, Number& threads, const char* text) {
  command.add_option("--threads", threads, text)
      ->check(whole_number_between(0, 4096))
      ->capture_default_str();
}
template <typename App>
void add_json(App& command, bool& json) {
  command.add_flag("--json", json, "One JSON object on standard output");
}

// For CLI::Option::transform(): replaces a size, such as "512", "500 MB" (of 10^6 bytes) or
// "1.5GiB" (of 2^30), by its bytes. Returns what a check would.
std::string to_bytes(std::string& text);
// The same, above 0.
std::string to_positive_bytes(std::string& text);

}  // namespace chaski
