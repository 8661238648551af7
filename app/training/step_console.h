#pragma once

#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>

#include "app/config/config.h"

namespace chaski {

// What the console tells of a step; NaN stands for unknown.
struct StepLine {
  std::int64_t step = 0;  // updates done
  std::int64_t total_steps = 0;
  double loss = 0;  // nats per token
  double lr = 0;
  double grad_norm = 0;
  double tokens_per_second = 0;
  double ceiling_share = std::numeric_limits<double>::quiet_NaN();  // of the GEMM ceiling, 0 … 1
  std::int64_t memory_bytes = 0;
  double eta_seconds = std::numeric_limits<double>::quiet_NaN();
};

struct ValidationLine {
  std::int64_t step = 0;
  double loss = 0;  // nats per token
  double bits_per_byte = std::numeric_limits<double>::quiet_NaN();
  std::int64_t tokens = 0;
  double seconds = 0;
};

// The training run's console: aligned step lines under a header that returns now and then, and
// other lines between them. On standard output by default; flushed line by line.
class StepConsole {
 public:
  explicit StepConsole(ConsoleMode mode, std::FILE* out = stdout);
  // `terminal`: colours; else none.
  StepConsole(ConsoleMode mode, std::FILE* out, bool terminal);

  void step(const StepLine& line);
  void validation(const ValidationLine& line);
  void note(const std::string& text);     // something that happened: a checkpoint was written
  void warning(const std::string& text);  // printed whatever the mode

 private:
  void print(const std::string& text, const char* colour);

  ConsoleMode mode_;
  std::FILE* out_;
  bool colours_;
  int lines_since_header_ = 0;
  bool header_printed_ = false;
};

}  // namespace chaski
