#include "app/training/outputs.h"

#include <cstdio>
#include <filesystem>
#include <fmt/core.h>
#include <stdexcept>

#include "fault/checkpoint/file_system.h"

namespace chaski {

void RunOutputs::lock() {
  try {
    lock_ = std::make_unique<OutputLock>(config_.run.output);
  } catch (const FileError& error) {
    throw std::runtime_error(
        fmt::format("{}\nhint: run.output = \"{}\" must be a folder that can be written",
                    error.what(), config_.run.output));
  }
}

void RunOutputs::adopt(bool reports, std::int64_t step) {
  if (!reports) {
    console_.reset();
    metrics_.reset();
    lock_.reset();
    return;
  }
  if (console_ != nullptr) return;
  if (lock_ == nullptr) lock();
  console_ = std::make_unique<StepConsole>(config_.log.console);
  if (!config_.metrics_path().empty()) {
    metrics_ = std::make_unique<MetricsLog>(config_.metrics_path(), step);
  }
  const std::filesystem::path output = config_.run.output;
  write_file_atomically(posix_file_system(), (output / "config.toml").string(), to_toml(config_));
}

void RunOutputs::note(const std::string& text) {
  if (reports()) console_->note(text);
}

void RunOutputs::warning(const std::string& text, int rank) {
  if (reports()) return console_->warning(text);
  const std::string line = fmt::format("chaski: warning: rank {}: {}\n", rank, text);
  std::fputs(line.c_str(), stderr);
}

void RunOutputs::record(const StepMetrics& metrics) {
  if (metrics_ != nullptr) metrics_->write(metrics);
}

void RunOutputs::step(const StepLine& line) {
  if (reports()) console_->step(line);
}

void RunOutputs::validation(const ValidationLine& line) {
  if (reports()) console_->validation(line);
}

}  // namespace chaski
