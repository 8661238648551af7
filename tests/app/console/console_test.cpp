#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <gtest/gtest.h>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "app/console/human_format.h"
#include "app/console/progress_bar.h"
#include "app/training/step_console.h"

namespace chaski {
namespace {

// A stream whose text can be looked at.
class Capture {
 public:
  Capture() : file_(open_memstream(&data_, &size_)) {}
  ~Capture() {
    std::fclose(file_);
    std::free(data_);
  }
  std::FILE* file() { return file_; }
  std::string text() {
    std::fflush(file_);
    return {data_, size_};
  }
  std::vector<std::string> lines() {
    std::vector<std::string> lines;
    std::istringstream stream(text());
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
  }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* file_;
};

StepLine line_at(std::int64_t step) {
  return {.step = step,
          .total_steps = 1000,
          .loss = 7.65432,
          .lr = 2e-5,
          .grad_norm = 1.2345,
          .tokens_per_second = 12345,
          .ceiling_share = 0.614,
          .memory_bytes = 1288490189,
          .eta_seconds = 754};
}

TEST(HumanFormat, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(1288490189), "1.20 GiB");
  EXPECT_EQ(format_bytes(1023LL << 20), "1.00 GiB");
}

TEST(HumanFormat, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1.00k");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(999999), "1.00M");
  EXPECT_EQ(format_count(std::nan("")), "-");
}

TEST(HumanFormat, Durations) {
  EXPECT_EQ(format_duration(0), "0.0s");
  EXPECT_EQ(format_duration(7.24), "7.2s");
  EXPECT_EQ(format_duration(59.97), "1m00s");
  EXPECT_EQ(format_duration(754), "12m34s");
  EXPECT_EQ(format_duration(7620), "2h07m");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600), "3d04h");
  EXPECT_EQ(format_duration(-1), "-");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "-");
}

TEST(StepConsole, AlignsLinesUnderTheirHeader) {
  Capture out;
  StepConsole console(ConsoleMode::automatic, out.file(), false);
  console.step(line_at(10));
  console.step(line_at(1000));
  const auto lines = out.lines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].size(), lines[1].size());
  EXPECT_EQ(lines[1].size(), lines[2].size());
  for (const char* part :
       {"10/1000", "7.6543", "2.00e-05", "1.23", "12.3k", "61%", "1.20 GiB", "12m34s"}) {
    EXPECT_NE(lines[1].find(part), std::string::npos) << part << " in " << lines[1];
  }
  for (const char* title : {"step", "loss", "lr", "grad norm", "tokens/s", "memory", "ETA"}) {
    EXPECT_NE(lines[0].find(title), std::string::npos) << title;
  }
}

TEST(StepConsole, UnknownAndBrokenNumbersKeepTheirColumns) {
  Capture out;
  StepConsole console(ConsoleMode::plain, out.file(), true);
  StepLine line = line_at(1);
  line.loss = line.grad_norm = line.ceiling_share = line.eta_seconds = std::nan("");
  console.step(line);
  EXPECT_EQ(out.lines()[0].size(), out.lines()[1].size());
}

TEST(StepConsole, HeaderReturns) {
  Capture out;
  StepConsole console(ConsoleMode::plain, out.file(), false);
  for (int step = 1; step <= 100; ++step) console.step(line_at(step));
  int headers = 0;
  for (const std::string& line : out.lines()) headers += line.find("grad norm") != line.npos;
  EXPECT_EQ(headers, 3);
}

TEST(StepConsole, ColoursOnlyOnATerminalInAutomaticMode) {
  for (const auto& [mode, terminal, colours] :
       std::vector<std::tuple<ConsoleMode, bool, bool>>{{ConsoleMode::automatic, true, true},
                                                        {ConsoleMode::automatic, false, false},
                                                        {ConsoleMode::plain, true, false}}) {
    Capture out;
    StepConsole console(mode, out.file(), terminal);
    console.step(line_at(1));
    console.validation({.step = 1, .loss = 2, .bits_per_byte = 1.5, .tokens = 100, .seconds = 1});
    EXPECT_EQ(out.text().find('\x1b') != std::string::npos, colours);
  }
}

TEST(StepConsole, ValidationTellsPerplexity) {
  Capture out;
  StepConsole console(ConsoleMode::plain, out.file(), false);
  console.validation({.step = 500,
                      .loss = std::log(20.0),
                      .bits_per_byte = 1.25,
                      .tokens = 65536,
                      .seconds = 3.2});
  EXPECT_EQ(out.text(),
            "validation at step 500: loss 2.9957, perplexity 20.00, 1.2500 bits per byte (65.5k "
            "tokens in 3.2s)\n");
}

TEST(StepConsole, OffIsSilentButForWarnings) {
  Capture out;
  StepConsole console(ConsoleMode::off, out.file(), true);
  console.step(line_at(1));
  console.note("saved");
  console.validation({});
  EXPECT_EQ(out.text(), "");
  console.warning("disk full");
  EXPECT_EQ(out.text(), "warning: disk full\n");
}

TEST(ProgressBar, PlainPrintsEveryTenSecondsAndTheEnd) {
  Capture out;
  double now = 0;
  ProgressBar bar("eval", 1000, "tokens", out.file(), false, [&] { return now; });
  for (; now < 25; now += 0.5) bar.update(static_cast<std::int64_t>(now * 40));
  now = 25;
  bar.update(1000);
  bar.finish("loss 3.21");
  const auto lines = out.lines();
  ASSERT_EQ(lines.size(), 3u) << out.text();
  EXPECT_EQ(lines[0], "eval [#########---------------]  40%  400/1.00k tokens  40/s  ETA 15.0s");
  EXPECT_EQ(lines[2],
            "eval [########################] 100%  1.00k/1.00k tokens  40/s  in 25.0s  loss 3.21");
  EXPECT_EQ(out.text().find('\r'), std::string::npos);
}

TEST(ProgressBar, TerminalRewritesItsLine) {
  Capture out;
  double now = 0;
  {
    ProgressBar bar("eval", 10, "rows", out.file(), true, [&] { return now; });
    for (int i = 1; i <= 9; ++i) {
      now += 0.2;
      bar.update(i);
    }
  }
  const std::string text = out.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 9);
  // Ends its line even where it was given up half-way.
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(text.back(), '\n');
}

TEST(ProgressBar, ClampsWhatIsBeyondTheEnd) {
  Capture out;
  double now = 0;
  ProgressBar bar("x", 10, "rows", out.file(), false, [&] { return now; });
  now = 11;
  bar.update(25);
  EXPECT_NE(out.text().find("100%  10/10"), std::string::npos) << out.text();
}

}  // namespace
}  // namespace chaski
