#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace chaski {

// One step's entry of the metrics file. Written after the step is committed.
struct StepMetrics {
  std::int64_t step = 0;  // updates done, this one included
  double loss = 0;        // nats per token
  double lr = 0;
  double grad_norm = 0;     // before clipping
  std::int64_t tokens = 0;  // since the run's beginning
  double tokens_per_second = 0;
  double seconds = 0;  // of this step
  // Further members: validation_loss, peak_memory_bytes, skipped …
  nlohmann::ordered_json extras = nlohmann::ordered_json::object();
};

// metrics.jsonl: one JSON object a line, handed to the operating system line by line. NaN and
// infinity become null. A line that cannot be written (disk full) is left out with a warning on
// standard error, once: training matters more than its log; nothing partial stays in the file.
// A file that was renamed (log rotation) or has vanished is left alone, and a new one begun.
class MetricsLog {
 public:
  // Opens the file, making its folder, and drops from it all entries of steps after `last_step`
  // (the checkpoint from which the run goes on; 0: a new run) and a last line that was cut off. The
  // dropping is atomic: a crash leaves the old or the new file. Throws std::runtime_error.
  MetricsLog(std::filesystem::path path, std::int64_t last_step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void write(const StepMetrics& metrics);
  std::int64_t lines_lost() const { return lines_lost_; }

 private:
  void drop_after(std::int64_t last_step);
  void open();
  void follow_name();

  std::filesystem::path path_;
  int file_ = -1;
  std::int64_t size_ = 0;  // up to the end of the last complete line
  std::int64_t lines_lost_ = 0;
};

}  // namespace chaski
