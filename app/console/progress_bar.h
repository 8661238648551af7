#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

namespace chaski {

// Progress of something with a known end, on one line: "label [####----]  42%  1.2M/2.9M tokens
// 310k/s  ETA 5.4s". On a terminal the line is rewritten up to ten times a second; elsewhere a new
// line is printed every ten seconds, so that logs stay short.
class ProgressBar {
 public:
  // `total` in `unit`s, above 0. `clock` gives seconds; the steady clock where it is empty.
  ProgressBar(std::string label, std::int64_t total, std::string unit, std::FILE* out = stderr,
              bool terminal = is_terminal(stderr), std::function<double()> clock = {});
  // Ends the line where finish() did not.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `note` is shown behind, e.g. "loss 3.21".
  void update(std::int64_t done, const std::string& note = "");
  // Prints the last state with the time that all took.
  void finish(const std::string& note = "");

  // Whether to rewrite lines and use colours: a terminal that is not "dumb".
  static bool is_terminal(std::FILE* file);

 private:
  std::string line(double elapsed, const std::string& note, bool finished) const;
  void print(const std::string& text, bool last);

  std::string label_;
  std::int64_t total_;
  std::string unit_;
  std::FILE* out_;
  bool terminal_;
  std::function<double()> clock_;
  double started_;
  double printed_;
  std::int64_t done_ = 0;
  bool open_line_ = false;
  bool finished_ = false;
};

}  // namespace chaski
