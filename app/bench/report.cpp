#include "app/bench/report.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/core.h>
#include <stdexcept>

#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/console/progress_bar.h"
#include "kernels/device/cpu_isa.h"
#include "kernels/products/matmul.h"

namespace chaski {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

Spread spread_of(const std::vector<double>& seconds) {
  if (seconds.empty()) throw std::logic_error("the spread of no measurement");
  const auto [best, worst] = std::minmax_element(seconds.begin(), seconds.end());
  return {*best, median(seconds), *worst, static_cast<int>(seconds.size())};
}

nlohmann::json to_json(const Spread& spread) {
  return {{"seconds", {{"best", spread.best}, {"median", spread.median}, {"worst", spread.worst}}},
          {"repetitions", spread.repetitions}};
}

void BenchEffort::add_to(CLI::App& command) {
  command.add_option("--seconds", seconds, "Measure each line for at least so long")
      ->check(number_from(0))
      ->capture_default_str();
  add_count(command, "--repetitions", repetitions, "Measure each line at least so often");
}

void measure(std::vector<BenchSeries>& series, const BenchEffort& effort,
             const std::function<void()>& before_round) {
  const int rounds = std::min(BenchEffort::kRounds, effort.repetitions);
  const int repetitions = (effort.repetitions + rounds - 1) / rounds;
  ProgressBar progress("measuring", rounds * static_cast<std::int64_t>(series.size()), "series");
  std::int64_t done = 0;
  for (int round = 0; round < rounds; ++round) {
    for (BenchSeries& one : series) {
      progress.update(done++, one.name);
      if (before_round) before_round();
      one.run();
      double elapsed = 0.0;
      for (int i = 0; i < repetitions || elapsed < effort.seconds / rounds; ++i) {
        // Work that takes no time at all must not keep this going for ever.
        elapsed += std::max(1e-6, one.seconds.emplace_back(one.run()));
      }
    }
  }
}

ReportTable::ReportTable(std::vector<std::string> header) {
  rows_.push_back(std::move(header));
}

void ReportTable::add(std::vector<std::string> row) {
  if (row.size() != rows_.front().size()) throw std::logic_error("a table's rows differ in cells");
  rows_.push_back(std::move(row));
}

void ReportTable::print() const {
  std::vector<std::size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows_) {
    std::string line = fmt::format("{:<{}}", row[0], widths[0]);
    for (std::size_t i = 1; i < row.size(); ++i) {
      line += fmt::format("  {:>{}}", row[i], widths[i]);
    }
    fmt::print("{}\n", line);
  }
}

std::string ReportLine::number(const char* key, int decimals, double scale) const {
  return fmt::format("{:.{}f}", scale * line_[key].get<double>(), decimals);
}

std::string ReportLine::seconds(const char* which, int decimals) const {
  return ReportLine(line_["seconds"]).number(which, decimals);
}

std::string ReportLine::milliseconds(const char* which, int decimals) const {
  return ReportLine(line_["seconds"]).number(which, decimals, 1e3);
}

void print_json(const nlohmann::json& report) {
  fmt::print("{}\n", report.dump(2));
}

nlohmann::json describe_machine(int num_threads) {
  return {{"threads", num_threads},
          {"instruction_set", name_of(cpu_isa())},
          {"gemm_library", gemm_library()}};
}

nlohmann::json describe_machine(Device& device, Precision precision) {
  nlohmann::json machine = describe_machine(device.num_threads());
  if (device.backend() == Backend::cpu) return machine;
  machine["gemm_library"] = gemm_library(device.backend());
  machine["device"] = device.describe();
  machine["precision"] = name_of(precision);
  return machine;
}

std::string machine_line(const nlohmann::json& machine) {
  const ReportLine line(machine);
  if (machine.contains("device")) {
    return fmt::format("{}, {}, {}", line.text("device"), line.text("precision"),
                       line.text("gemm_library"));
  }
  return fmt::format("{}, {}, {}", format_number_of(machine["threads"].get<int>(), "thread"),
                     line.text("instruction_set"), line.text("gemm_library"));
}

}  // namespace chaski
