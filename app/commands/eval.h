#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `eval`; it runs as the subcommand's callback.
void register_eval_command(CLI::App& app);

}  // namespace chaski
