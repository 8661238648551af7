#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `tokenizer`; it runs as the subcommand's callback.
void register_tokenizer_command(CLI::App& app);

}  // namespace chaski
