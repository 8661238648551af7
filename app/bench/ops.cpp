#include <algorithm>
#include <fmt/core.h>
#include <memory>
#include <stdexcept>

#include "app/bench/memory_bandwidth.h"
#include "app/bench/model.h"
#include "app/bench/op_list.h"
#include "app/bench/operands.h"
#include "app/bench/report.h"
#include "app/commands/bench.h"
#include "app/console/option_checks.h"
#include "app/plan/gemm_ceiling.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

struct BenchOpsOptions {
  BenchModel model;
  BenchDevice device;
  std::int64_t micro_batch = 8;
  std::int64_t sequence_length = 256;
  BenchEffort effort;
  bool json = false;

  Shape batch() const { return {micro_batch, sequence_length}; }
};

double ceiling_of(OpBound bound, double gemm, const MemoryBandwidth::Rates& memory) {
  switch (bound) {
    case OpBound::gemm:
      return gemm;
    case OpBound::read:
      return memory.read;
    case OpBound::write:
      return memory.write;
    case OpBound::mixed:
      return memory.best_mixed();
  }
  throw std::logic_error("no such bound");
}

// Of each op.
std::vector<double> count_work(Device& device, const BenchOpsOptions& options,
                               const LlamaConfig& config, const TensorTypes& types) {
  const auto counting = Device::create_counting(device);
  const Buffer tokens = random_ids(*counting, options.batch(), config.vocab_size, 1);
  std::vector<double> work;
  for (const BenchOp& op : bench_ops(config, {tokens.tensor(), tokens.tensor()}, types))
    work.push_back(op.work_on(*counting));
  return work;
}

nlohmann::json line_of(const BenchOp& op, double work, const Spread& spread, double ceiling) {
  nlohmann::json line = to_json(spread);
  line["op"] = op.name;
  line["bound"] = name_of(op.bound);
  line["work"] = work;
  line["unit"] = op.bound == OpBound::gemm ? "GFLOP/s" : "GB/s";
  line["rate"] = 1e-9 * work / spread.median;
  line["best_rate"] = 1e-9 * work / spread.best;
  line["share"] = line["rate"].get<double>() / ceiling;
  return line;
}

nlohmann::json run(const BenchOpsOptions& options) {
  const LlamaConfig config = options.model.config();
  const DeviceChoice choice = options.device.choice();
  const TensorTypes types = types_of(choice.precision);
  const auto device = choice.create(options.model.threads);
  const Buffer tokens = random_ids(*device, options.batch(), config.vocab_size, 1);
  const Buffer targets = random_ids(*device, options.batch(), config.vocab_size, 2);
  const std::vector<BenchOp> ops = bench_ops(config, {tokens.tensor(), targets.tensor()}, types);
  std::vector<BenchOperandList> sets;
  for (const BenchOp& op : ops) sets.push_back(op.operands);
  BenchOperands operands(*device, types.compute, sets);
  const MemoryBandwidth bandwidth(operands.memory());

  std::vector<BenchSeries> series;
  for (const BenchOp& op : ops) {
    series.push_back({op.name, [&op, sets = operands.carve(op.operands)]() mutable {
                        return op.timed(sets.next());
                      }});
  }
  for (BenchSeries& one : bandwidth.series()) series.push_back(std::move(one));
  const double gemm_before = measure_gemm_ceiling(*device, types.compute, options.effort.seconds);
  measure(series, options.effort, [&] { operands.refill(); });
  const double gemm_after = measure_gemm_ceiling(*device, types.compute, options.effort.seconds);

  const std::vector<double> work = count_work(*device, options, config, types);
  const MemoryBandwidth::Rates memory = bandwidth.rates(series);
  const double gemm = std::max(gemm_before, gemm_after);
  nlohmann::json lines = nlohmann::json::array();
  for (std::size_t i = 0; i < ops.size(); ++i) {
    lines.push_back(line_of(ops[i], work[i], spread_of(series[i].seconds),
                            ceiling_of(ops[i].bound, gemm, memory)));
  }
  nlohmann::json report;
  report["benchmark"] = "ops";
  report["preset"] = options.model.preset;
  report["micro_batch"] = options.micro_batch;
  report["sequence_length"] = options.sequence_length;
  report["machine"] = describe_machine(*device, choice.precision);
  report["gemm_ceiling_gflops"] = gemm;
  report["memory_gb_per_second"] = to_json(memory);
  report["ops"] = lines;
  return report;
}

void print_ops(const nlohmann::json& report) {
  const ReportLine all(report);
  fmt::print("ops of {} on {} x {} tokens; {}\n\n", all.text("preset"), all.integer("micro_batch"),
             all.integer("sequence_length"), machine_line(report["machine"]));
  ReportTable table({"op", "median ms", "best ms", "worst ms", "rate", "unit", "ceiling", "share"});
  for (const nlohmann::json& op : report["ops"]) {
    const ReportLine line(op);
    table.add({line.text("op"), line.milliseconds("median", 3), line.milliseconds("best", 3),
               line.milliseconds("worst", 3), line.number("rate", 1), line.text("unit"),
               line.text("bound"), line.number("share", 3)});
  }
  table.print();
  const ReportLine memory(report["memory_gb_per_second"]);
  fmt::print(
      "\nshare     of the ceiling named beside it; above 1 where the caches hold what memory "
      "would\n"
      "          have to be read for\n"
      "ceilings  gemm {} GFLOP/s; memory {} read, {} write, {} copy, {} triad GB/s\n",
      all.number("gemm_ceiling_gflops", 0), memory.number("read", 1), memory.number("write", 1),
      memory.number("copy", 1), memory.number("triad", 1));
}

}  // namespace

void register_bench_ops(CLI::App& bench) {
  auto options = std::make_shared<BenchOpsOptions>();
  CLI::App* command = bench.add_subcommand(
      "ops", "Every other op, beside the memory's bandwidth or the best matrix product");
  options->model.add_to(*command);
  options->device.add_to(*command);
  add_count(*command, "--micro-batch", options->micro_batch, "Rows of a micro-batch");
  add_count(*command, "--sequence-length", options->sequence_length, "Tokens of a row");
  options->effort.add_to(*command);
  add_json(*command, options->json);
  command->callback([options] {
    require_one_process("ops");
    const nlohmann::json report = run(*options);
    options->json ? print_json(report) : print_ops(report);
  });
}

}  // namespace chaski
