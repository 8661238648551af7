#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `tokenize`; it runs as the subcommand's callback.
void register_tokenize_command(CLI::App& app);

}  // namespace chaski
