#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `export`; it runs as the subcommand's callback.
void register_export_command(CLI::App& app);

}  // namespace chaski
