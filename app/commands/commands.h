#pragma once

#include <CLI/CLI.hpp>

namespace chaski {

// Each adds the subcommand of its name, which runs as the subcommand's callback.
void register_tokenizer_command(CLI::App& app);
void register_tokenize_command(CLI::App& app);
void register_plan_command(CLI::App& app);
void register_train_command(CLI::App& app);
void register_eval_command(CLI::App& app);
void register_generate_command(CLI::App& app);
void register_export_command(CLI::App& app);
void register_import_command(CLI::App& app);
void register_inspect_command(CLI::App& app);
// With one subcommand of its own a benchmark. Each measures the ceilings that it compares with in
// the same run.
void register_bench_command(CLI::App& app);
// Hidden; prints docs/config.md.
void register_config_reference_command(CLI::App& app);

}  // namespace chaski
