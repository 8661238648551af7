#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// `chaski plan`.
void register_plan_command(CLI::App& app);

}  // namespace chaski
