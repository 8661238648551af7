#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace chaski {

// Refuses several processes where a benchmark measures one: beside each other they would measure
// each other. Throws std::invalid_argument on all of them.
void require_one_process(const std::string& benchmark);

// Add `bench train`, `bench gemm`, ….
void register_bench_train(CLI::App& bench);
void register_bench_gemm(CLI::App& bench);
void register_bench_ops(CLI::App& bench);
void register_bench_tokenize(CLI::App& bench);
void register_bench_checkpoint(CLI::App& bench);
void register_bench_allreduce(CLI::App& bench);
void register_bench_decode(CLI::App& bench);

}  // namespace chaski
