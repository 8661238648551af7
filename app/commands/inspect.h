#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `inspect`; it runs as the subcommand's callback.
void register_inspect_command(CLI::App& app);

}  // namespace chaski
