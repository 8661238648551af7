#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "app/config/config.h"
#include "app/training/metrics_log.h"
#include "app/training/step_console.h"
#include "fault/checkpoint/output_lock.h"

namespace chaski {

// What a run shows and writes beside its checkpoints: the output directory with its lock and
// config.toml, the metrics and the console. One process of the job has them, the reporter; what the
// others are told here goes nowhere.
class RunOutputs {
 public:
  explicit RunOutputs(const TrainConfig& config) : config_(config) {}

  // Takes the output directory for this job, by the reporter. Throws as OutputLock does, with a
  // hint, std::runtime_error.
  void lock();
  // Whether this process has them from now on: the reporter opens the metrics, of which it drops
  // what came after `step`, and the console; a process that is it no longer closes them.
  void adopt(bool reports, std::int64_t step);

  bool reports() const { return console_ != nullptr; }
  bool shows() const { return reports() && config_.log.console != ConsoleMode::off; }
  void note(const std::string& text);
  // On a process that does not report: to standard error, naming `rank`.
  void warning(const std::string& text, int rank);
  void record(const StepMetrics& metrics);
  void step(const StepLine& line);
  void validation(const ValidationLine& line);

 private:
  const TrainConfig& config_;
  std::unique_ptr<OutputLock> lock_;
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<StepConsole> console_;
};

}  // namespace chaski
