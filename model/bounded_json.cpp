#include "model/bounded_json.h"

#include <fmt/format.h>
#include <stdexcept>

namespace chaski {

nlohmann::ordered_json parse_bounded_json(const std::string& text, const std::string& source) {
  using Json = nlohmann::ordered_json;
  constexpr int kMaxDepth = 16;
  const auto check_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth)
      throw std::runtime_error(fmt::format("{}: its JSON is nested too deeply", source));
    return true;
  };
  try {
    return Json::parse(text, check_depth);
  } catch (const Json::parse_error& error) {
    throw std::runtime_error(fmt::format("{}: is malformed JSON at byte {}", source, error.byte));
  } catch (const Json::exception&) {
    throw std::runtime_error(fmt::format("{}: is malformed JSON", source));
  }
}

}  // namespace chaski
