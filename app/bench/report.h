#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/measuring/timer.h"
#include "model/precision.h"

namespace CLI {
class App;
}

namespace chaski {

double median(std::vector<double> values);

// How long repetitions of the same work took.
struct Spread {
  double best = 0.0;  // seconds
  double median = 0.0;
  double worst = 0.0;
  int repetitions = 0;
};
Spread spread_of(const std::vector<double>& seconds);
// {"seconds": {"best", "median", "worst"}, "repetitions"}
nlohmann::json to_json(const Spread& spread);

// Seconds that `work` takes of the device, by itself: its caches have been overwritten on a GPU.
template <typename Work>
double timed(Device& device, const Work& work) {
  DeviceTimer timer(device);
  timer.start();
  work();
  return timer.stop();
}

// Seconds that `work` takes.
template <typename Work>
double timed(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return seconds_since(start);
}

// How much is measured. All series of a benchmark take turns in several rounds, so that what else
// the machine does meets all of them.
struct BenchEffort {
  double seconds = 0.6;  // of each series, at least
  int repetitions = 5;   // of each series, at least
  static constexpr int kRounds = 3;

  // Adds --seconds and --repetitions. This object must outlive `command`.
  void add_to(CLI::App& command);
};

struct BenchSeries {
  std::string name;
  std::function<double()> run;    // once; returns the seconds it took
  std::vector<double> seconds{};  // of all repetitions
};
// One unmeasured run opens each round of a series. Before that `before_round` (may be empty) is
// called.
void measure(std::vector<BenchSeries>& series, const BenchEffort& effort,
             const std::function<void()>& before_round = {});

// A table on standard output: the first column to the left, the others to the right.
class ReportTable {
 public:
  explicit ReportTable(std::vector<std::string> header);
  void add(std::vector<std::string> row);  // as many cells as the header has
  void print() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// One line of a report as a table's cells.
class ReportLine {
 public:
  explicit ReportLine(const nlohmann::json& line) : line_(line) {}  // must outlive this object

  std::string text(const char* key) const { return line_[key].get<std::string>(); }
  std::string integer(const char* key) const { return line_[key].dump(); }
  // The value times `scale`.
  std::string number(const char* key, int decimals, double scale = 1.0) const;
  // "best", "median" or "worst" of to_json(Spread).
  std::string seconds(const char* which, int decimals) const;
  std::string milliseconds(const char* which, int decimals) const;

 private:
  const nlohmann::json& line_;
};

void print_json(const nlohmann::json& report);

// {"threads", "instruction_set", "gemm_library"}: what every benchmark says of the machine.
nlohmann::json describe_machine(int num_threads);
// The same of what a device computes with; of a GPU "device" and "precision", too.
nlohmann::json describe_machine(Device& device, Precision precision);
// The same in one line, as a table's heading.
std::string machine_line(const nlohmann::json& machine);

}  // namespace chaski
