#include "app/console/progress_bar.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fmt/format.h>
#include <string_view>
#include <unistd.h>
#include <utility>

#include "app/console/human_format.h"
#include "app/console/launcher.h"

namespace chaski {
namespace {

constexpr double kTerminalInterval = 0.1;  // seconds
constexpr double kPlainInterval = 10.0;
constexpr int kBarWidth = 24;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

ProgressBar::ProgressBar(std::string label, std::int64_t total, std::string unit, std::FILE* out,
                         bool terminal, std::function<double()> clock)
    : label_(std::move(label)),
      total_(std::max<std::int64_t>(total, 1)),
      unit_(std::move(unit)),
      out_(out),
      terminal_(terminal),
      clock_(clock ? std::move(clock) : steady_seconds),
      started_(clock_()),
      printed_(started_) {}

ProgressBar::~ProgressBar() {
  if (open_line_) std::fputc('\n', out_);
}

void ProgressBar::update(std::int64_t done, const std::string& note) {
  done_ = std::clamp<std::int64_t>(done, 0, total_);
  const double now = clock_();
  if (now - printed_ < (terminal_ ? kTerminalInterval : kPlainInterval)) return;
  printed_ = now;
  print(line(now - started_, note, false), false);
}

void ProgressBar::finish(const std::string& note) {
  if (std::exchange(finished_, true)) return;
  print(line(clock_() - started_, note, true), true);
}

bool ProgressBar::is_terminal(std::FILE* file) {
  // mpirun gives its processes a terminal of its own, whatever its output goes to.
  if (is_launched()) return false;
  const char* kind = std::getenv("TERM");
  return isatty(fileno(file)) && !(kind && std::string_view(kind) == "dumb");
}

std::string ProgressBar::line(double elapsed, const std::string& note, bool finished) const {
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const int filled = static_cast<int>(share * kBarWidth);
  const double rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  std::string text = fmt::format("{} [{}{}] {:3.0f}%  {}/{} {}", label_, std::string(filled, '#'),
                                 std::string(kBarWidth - filled, '-'), share * 100,
                                 format_count(static_cast<double>(done_)),
                                 format_count(static_cast<double>(total_)), unit_);
  if (rate > 0) text += fmt::format("  {}/s", format_count(rate));
  if (finished) {
    text += "  in " + format_duration(elapsed);
  } else if (rate > 0) {
    text += "  ETA " + format_duration(static_cast<double>(total_ - done_) / rate);
  }
  if (!note.empty()) text += "  " + note;
  return text;
}

void ProgressBar::print(const std::string& text, bool last) {
  // On a terminal back to the line's start, and what a longer line left is erased.
  std::string line = terminal_ ? "\r" + text + "\x1b[K" : text;
  if (last || !terminal_) line += '\n';
  std::fputs(line.c_str(), out_);
  std::fflush(out_);
  open_line_ = terminal_ && !last;
}

}  // namespace chaski
