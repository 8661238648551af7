#include "app/config/stored_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <stdexcept>

namespace chaski {

std::string changes_of_course(std::string_view saved, const std::string& checkpoint,
                              const TrainConfig& now) {
  StoredConfig stored;
  try {
    stored = parse_stored_config(saved, checkpoint);
  } catch (const std::invalid_argument&) {
    return "values that this version does not allow";
  }
  const TrainConfig& before = stored.config;
  std::vector<std::string> changed;
  const auto compare = [&](bool same, const char* table) {
    if (!same) changed.emplace_back(table);
  };
  compare(before.run.seed == now.run.seed, "run.seed");
  compare(before.data == now.data, "[data]");
  compare(before.optimizer == now.optimizer, "[optimizer]");
  compare(before.schedule == now.schedule, "[schedule]");
  compare(before.parallel.global_batch == now.parallel.global_batch, "parallel.global_batch");
  for (const std::string& name : stored.unknown)
    changed.push_back(name + ", which this version does not have");
  return fmt::format("{}", fmt::join(changed, ", "));
}

}  // namespace chaski
