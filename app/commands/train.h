#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `train`; it runs as the subcommand's callback.
void register_train_command(CLI::App& app);

}  // namespace chaski
