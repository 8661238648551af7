#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the hidden subcommand `config-reference`, which prints docs/config.md.
void register_config_reference_command(CLI::App& app);

}  // namespace chaski
