#include "app/bench_command.h"

namespace chaski {

void register_bench_command(CLI::App& app) {
  CLI::App* bench =
      app.add_subcommand("bench", "Measure speed and memory, beside the machine's own ceilings");
  bench->require_subcommand(1);
  register_bench_train(*bench);
  register_bench_gemm(*bench);
  register_bench_ops(*bench);
  register_bench_tokenize(*bench);
  register_bench_checkpoint(*bench);
  register_bench_allreduce(*bench);
  register_bench_decode(*bench);
}

}  // namespace chaski
