#include <fmt/format.h>

#include "app/commands/commands.h"
#include "app/config/schema.h"

namespace chaski {

void register_config_reference_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("config-reference", "Prints docs/config.md");
  command->group("");  // hidden
  command->callback([] { fmt::print("{}", config_reference()); });
}

}  // namespace chaski
