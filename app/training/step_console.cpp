#include "app/training/step_console.h"

#include <cmath>
#include <fmt/format.h>

#include "app/console/human_format.h"
#include "app/console/progress_bar.h"

namespace chaski {
namespace {

constexpr int kLinesPerHeader = 40;
constexpr const char* kBold = "\x1b[1m";
constexpr const char* kGreen = "\x1b[32m";
constexpr const char* kYellow = "\x1b[33m";
constexpr const char* kReset = "\x1b[0m";

std::string percent(double share) {
  return std::isfinite(share) ? fmt::format("{:.0f}%", share * 100) : "-";
}

}  // namespace

StepConsole::StepConsole(ConsoleMode mode, std::FILE* out)
    : StepConsole(mode, out, ProgressBar::is_terminal(out)) {}

StepConsole::StepConsole(ConsoleMode mode, std::FILE* out, bool terminal)
    : mode_(mode), out_(out), colours_(terminal && mode == ConsoleMode::automatic) {}

void StepConsole::step(const StepLine& line) {
  if (mode_ == ConsoleMode::off) return;
  if (!header_printed_ || lines_since_header_ >= kLinesPerHeader) {
    print(fmt::format("{:>15} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>8}", "step", "loss", "lr",
                      "grad norm", "tokens/s", "ceiling", "memory", "ETA"),
          kBold);
    header_printed_ = true;
    lines_since_header_ = 0;
  }
  ++lines_since_header_;
  print(fmt::format("{:>15} {:>9.4f} {:>9.2e} {:>9.3g} {:>9} {:>8} {:>9} {:>8}",
                    fmt::format("{}/{}", line.step, line.total_steps), line.loss, line.lr,
                    std::abs(line.grad_norm), format_count(line.tokens_per_second),
                    percent(line.ceiling_share), format_bytes(line.memory_bytes),
                    format_duration(line.eta_seconds)),
        nullptr);
}

void StepConsole::validation(const ValidationLine& line) {
  if (mode_ == ConsoleMode::off) return;
  std::string text = fmt::format("validation at step {}: loss {:.4f}, perplexity {:.2f}", line.step,
                                 line.loss, std::exp(line.loss));
  if (std::isfinite(line.bits_per_byte)) {
    text += fmt::format(", {:.4f} bits per byte", line.bits_per_byte);
  }
  print(text + fmt::format(" ({} tokens in {})", format_count(static_cast<double>(line.tokens)),
                           format_duration(line.seconds)),
        kGreen);
}

void StepConsole::note(const std::string& text) {
  if (mode_ != ConsoleMode::off) print(text, nullptr);
}

void StepConsole::warning(const std::string& text) {
  print("warning: " + text, kYellow);
}

void StepConsole::print(const std::string& text, const char* colour) {
  // Not fmt::print, which throws: a console that cannot be written must not end the training.
  const std::string line =
      colours_ && colour ? fmt::format("{}{}{}\n", colour, text, kReset) : text + "\n";
  std::fputs(line.c_str(), out_);
  std::fflush(out_);
}

}  // namespace chaski
