#include "app/commands/bench.h"

#include <fmt/core.h>
#include <stdexcept>

#include "app/commands/commands.h"
#include "app/console/launcher.h"
#include "app/job/mpi_session.h"

namespace chaski {

void require_one_process(const std::string& benchmark) {
  if (!is_launched() || mpi_session().size() == 1) return;
  throw std::invalid_argument(
      fmt::format("bench {}: measures one process, but {} were started\nhint: start it without "
                  "mpirun: chaski bench {}",
                  benchmark, mpi_session().size(), benchmark));
}

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
