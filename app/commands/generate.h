#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `generate`; it runs as the subcommand's callback.
void register_generate_command(CLI::App& app);

}  // namespace chaski
