#include "app/training/metrics_log.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace chaski {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* what) {
  throw std::runtime_error(
      fmt::format("{}: the metrics file cannot be {}: {}\nhint: log.jsonl sets "
                  "another path; \"\" writes none",
                  path.string(), what, std::strerror(errno)));
}

// True when all bytes were written.
bool write_all(int file, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

// The descriptor, or -1.
int open_for_lines(const std::filesystem::path& path) {
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

void sync_directory(const std::filesystem::path& directory) {
  const int file = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY);
  if (file < 0) return;
  ::fsync(file);
  ::close(file);
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

bool is_entry_up_to(const std::string& line, std::int64_t last_step) {
  const nlohmann::json entry = nlohmann::json::parse(line, nullptr, false);
  if (!entry.is_object() || !entry.contains("step")) return false;
  const nlohmann::json& step = entry["step"];
  return step.is_number_integer() && step.get<std::int64_t>() <= last_step;
}

}  // namespace

MetricsLog::MetricsLog(std::filesystem::path path, std::int64_t last_step)
    : path_(std::move(path)) {
  std::error_code error;
  std::filesystem::create_directories(folder_of(path_), error);
  if (std::filesystem::exists(path_, error)) drop_after(last_step);
  open();
}

MetricsLog::~MetricsLog() {
  if (file_ >= 0) ::close(file_);
}

void MetricsLog::drop_after(std::int64_t last_step) {
  std::ifstream old(path_, std::ios::binary);
  if (!old) fail(path_, "read");
  const std::filesystem::path temporary = path_.string() + ".tmp";
  const int kept = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (kept < 0) fail(temporary, "written");
  bool written = true, dropped = false;
  std::string line;
  while (written && std::getline(old, line)) {
    // A line without its end was cut off, even where it parses: the next one must not continue it.
    if (!old.eof() && is_entry_up_to(line, last_step)) {
      written = write_all(kept, line + "\n");
    } else {
      dropped = true;
    }
  }
  written = written && ::fsync(kept) == 0;
  const int code = errno;
  ::close(kept);
  if (!written || !dropped) ::unlink(temporary.c_str());
  errno = code;
  if (!written) fail(temporary, "written");
  if (!dropped) return;
  if (::rename(temporary.c_str(), path_.c_str()) != 0) fail(path_, "replaced");
  sync_directory(folder_of(path_));
}

void MetricsLog::open() {
  file_ = open_for_lines(path_);
  if (file_ < 0) fail(path_, "opened");
  size_ = ::lseek(file_, 0, SEEK_END);
}

void MetricsLog::follow_name() {
  struct stat opened {};
  struct stat named {};
  if (::fstat(file_, &opened) == 0 && ::stat(path_.c_str(), &named) == 0 &&
      opened.st_ino == named.st_ino && opened.st_dev == named.st_dev) {
    return;
  }
  std::error_code ignored;
  std::filesystem::create_directories(folder_of(path_), ignored);
  const int file = open_for_lines(path_);
  if (file < 0) return;  // the old file, wherever it is now, still takes lines
  ::close(file_);
  file_ = file;
  size_ = ::lseek(file_, 0, SEEK_END);
}

void MetricsLog::write(const StepMetrics& metrics) {
  follow_name();
  nlohmann::ordered_json entry = {
      {"step", metrics.step},      {"loss", metrics.loss},
      {"lr", metrics.lr},          {"grad_norm", metrics.grad_norm},
      {"tokens", metrics.tokens},  {"tokens_per_second", metrics.tokens_per_second},
      {"seconds", metrics.seconds}};
  entry.update(metrics.extras);
  const std::string line = entry.dump() + "\n";
  if (write_all(file_, line)) {
    size_ += static_cast<std::int64_t>(line.size());
    return;
  }
  const std::string why = std::strerror(errno);
  // Half a line would spoil the next one.
  const bool restored = ::ftruncate(file_, size_) == 0;
  if (lines_lost_++ > 0) return;
  // Not fmt::print, which throws where standard error is on the same full disk.
  std::fputs(fmt::format("chaski: warning: {}: cannot be written: {}; training goes on{}\n",
                         path_.string(), why, restored ? "" : ", the file may hold half a line")
                 .c_str(),
             stderr);
}

}  // namespace chaski
