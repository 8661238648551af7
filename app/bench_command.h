#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Adds the subcommand `bench`, with one subcommand of its own a benchmark.
void register_bench_command(CLI::App& app);

// Adds `bench train`.
void register_bench_train(CLI::App& bench);

}  // namespace chaski
