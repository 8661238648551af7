#include <algorithm>
#include <fmt/core.h>
#include <memory>

#include "app/bench/model.h"
#include "app/bench/operands.h"
#include "app/bench/report.h"
#include "app/commands/bench.h"
#include "app/config/config.h"
#include "app/console/option_checks.h"
#include "app/plan/gemm_ceiling.h"
#include "app/plan/step_gemms.h"

namespace chaski {
namespace {

struct BenchGemmOptions {
  BenchModel model;
  BenchDevice device;
  std::int64_t tokens = 0;  // 0: as many as a device is usually given at a time
  BenchEffort effort;
  bool json = false;
};

BenchOperandList operands_of(const StepGemm& gemm, const TensorTypes& types) {
  const auto shapes = gemm.shapes();
  const auto dtypes = gemm.types(types);
  return {{shapes[0], dtypes[0]}, {shapes[1], dtypes[1]}, {shapes[2], dtypes[2]}};
}

BenchSeries series_of(const StepGemm& gemm, const TensorTypes& types,
                      const BenchOperands& operands) {
  return {gemm.name(), [gemm, sets = operands.carve(operands_of(gemm, types))]() mutable {
            const std::vector<Tensor>& x = sets.next();
            return timed(x[0].device(), [&] { gemm.run(x[0], x[1], x[2]); });
          }};
}

nlohmann::json report_of(const std::vector<StepGemm>& gemms,
                         const std::vector<BenchSeries>& measured, double ceiling) {
  double step_flops = 0.0;
  double step_seconds = 0.0;
  for (std::size_t i = 0; i < gemms.size(); ++i) {
    const Spread spread = spread_of(measured[i].seconds);
    step_flops += gemms[i].count * gemms[i].flops();
    step_seconds += gemms[i].count * spread.median;
    ceiling = std::max(ceiling, 1e-9 * gemms[i].flops() / spread.best);
  }
  nlohmann::json lines = nlohmann::json::array();
  for (std::size_t i = 0; i < gemms.size(); ++i) {
    const StepGemm& gemm = gemms[i];
    const Spread spread = spread_of(measured[i].seconds);
    nlohmann::json line = to_json(spread);
    line["layer"] = gemm.layer;
    line["pass"] = name_of(gemm.pass);
    line["m"] = gemm.m;
    line["n"] = gemm.n;
    line["k"] = gemm.k;
    line["per_step"] = gemm.count;
    line["step_weight"] = gemm.count * gemm.flops() / step_flops;
    line["gflops"] = 1e-9 * gemm.flops() / spread.median;
    line["best_gflops"] = 1e-9 * gemm.flops() / spread.best;
    line["share"] = line["gflops"].get<double>() / ceiling;
    lines.push_back(line);
  }
  nlohmann::json report;
  report["gemms"] = lines;
  report["ceiling_gflops"] = ceiling;
  report["step_gflop"] = 1e-9 * step_flops;
  report["step_seconds"] = step_seconds;
  report["step_gflops"] = 1e-9 * step_flops / step_seconds;
  report["step_share"] = 1e-9 * step_flops / step_seconds / ceiling;
  return report;
}

std::int64_t tokens_for(const BenchGemmOptions& options, Backend backend) {
  constexpr std::int64_t kTokensOnGpu = 16384;
  if (options.tokens > 0) return options.tokens;
  return backend == Backend::cpu ? kTokensPerPass : kTokensOnGpu;
}

nlohmann::json run(const BenchGemmOptions& options) {
  const LlamaConfig config = options.model.config();
  const DeviceChoice choice = options.device.choice();
  const TensorTypes types = types_of(choice.precision);
  const auto device = choice.create(options.model.threads);
  const std::int64_t tokens = tokens_for(options, choice.backend);
  const std::vector<StepGemm> gemms = step_gemms(config, tokens, choice.backend);
  std::vector<BenchOperandList> sets;
  for (const StepGemm& gemm : gemms) sets.push_back(operands_of(gemm, types));
  const BenchOperands operands(*device, types.compute, sets);
  std::vector<BenchSeries> series;
  for (const StepGemm& gemm : gemms) series.push_back(series_of(gemm, types, operands));

  const double before = measure_gemm_ceiling(*device, types.compute, options.effort.seconds);
  measure(series, options.effort);
  const double after = measure_gemm_ceiling(*device, types.compute, options.effort.seconds);
  nlohmann::json report = report_of(gemms, series, std::max(before, after));
  report["benchmark"] = "gemm";
  report["preset"] = options.model.preset;
  report["tokens"] = tokens;
  report["machine"] = describe_machine(*device, choice.precision);
  return report;
}

void print_gemm(const nlohmann::json& report) {
  const ReportLine all(report);
  fmt::print("products of a step of {} on {} tokens; {}\n\n", all.text("preset"),
             all.integer("tokens"), machine_line(report["machine"]));
  ReportTable table({"layer", "pass", "m", "n", "k", "a step", "weight", "median ms", "best ms",
                     "worst ms", "GFLOP/s", "share"});
  for (const nlohmann::json& gemm : report["gemms"]) {
    const ReportLine line(gemm);
    table.add({line.text("layer"), line.text("pass"), line.integer("m"), line.integer("n"),
               line.integer("k"), fmt::format("{:g}", gemm["per_step"].get<double>()),
               line.number("step_weight", 3), line.milliseconds("median", 2),
               line.milliseconds("best", 2), line.milliseconds("worst", 2),
               line.number("gflops", 0), line.number("share", 3)});
  }
  table.print();
  fmt::print(
      "\nshare: of the ceiling, which is the best product of this run; median against best\n"
      "ceiling (best in this run)  {} GFLOP/s\n"
      "products of a whole step    {} s, {} GFLOP/s, {} of the ceiling\n",
      all.number("ceiling_gflops", 0), all.number("step_seconds", 3), all.number("step_gflops", 0),
      all.number("step_share", 3));
}

}  // namespace

void register_bench_gemm(CLI::App& bench) {
  auto options = std::make_shared<BenchGemmOptions>();
  CLI::App* command = bench.add_subcommand(
      "gemm", "Every matrix product of a training step by shape, beside the best of the run");
  options->model.add_to(*command);
  options->device.add_to(*command);
  command
      ->add_option("--tokens", options->tokens,
                   fmt::format("Of a pass; default: {} on a CPU, 16384 on a GPU", kTokensPerPass))
      ->check(whole_number_from(1));
  options->effort.add_to(*command);
  add_json(*command, options->json);
  command->callback([options] {
    require_one_process("gemm");
    const nlohmann::json report = run(*options);
    options->json ? print_json(report) : print_gemm(report);
  });
}

}  // namespace chaski
