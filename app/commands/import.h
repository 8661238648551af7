#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `import`; it runs as the subcommand's callback.
void register_import_command(CLI::App& app);

}  // namespace chaski
