#include "data/output_file.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fmt/format.h>
#include <signal.h>
#include <stdexcept>
#include <unistd.h>

namespace chaski {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kSpoolBufferBytes = 1 << 20;

[[noreturn]] void fail(const std::string& path, const char* what) {
  const int error = errno;
  std::string message = fmt::format("{}: {}: {}", path, what, std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) message += "\nhint: free some space on that disk";
  throw std::runtime_error(message);
}

fs::path folder_of(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  return folder.empty() ? fs::path(".") : folder;
}

std::string temporary_prefix(const std::string& path) {
  return fmt::format(".{}.tmp-", fs::path(path).filename().string());
}

// Names of temporary files, for the signal handler, which may only read atomics and unlink.
std::array<std::atomic<char*>, 16> temporary_names{};

void remember(const std::string& name) {
  char* copy = ::strdup(name.c_str());
  for (auto& slot : temporary_names) {
    char* empty = nullptr;
    if (slot.compare_exchange_strong(empty, copy)) return;
  }
  std::free(copy);
}

void forget(const std::string& name) {
  for (auto& slot : temporary_names) {
    char* known = slot.load();
    if (known != nullptr && name == known && slot.compare_exchange_strong(known, nullptr)) {
      std::free(known);
      return;
    }
  }
}

void remove_and_die(int signal) {
  for (auto& slot : temporary_names) {
    if (const char* name = slot.load()) ::unlink(name);
  }
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

// Removes what dead processes left of the same output file.
void remove_leftovers(const std::string& path) {
  const std::string prefix = temporary_prefix(path);
  std::error_code error;
  for (fs::directory_iterator it(folder_of(path), error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(prefix)) continue;
    const long process = std::strtol(name.c_str() + prefix.size(), nullptr, 10);
    if (process > 0 && ::kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH) {
      std::error_code ignored;
      fs::remove(it->path(), ignored);
    }
  }
}

void sync_path(const std::string& path, int flags) {
  const int file = ::open(path.c_str(), flags | O_CLOEXEC);
  if (file < 0) fail(path, "cannot be opened");
  if (::fsync(file) != 0) {
    const int error = errno;
    ::close(file);
    errno = error;
    fail(path, "cannot be made durable");
  }
  ::close(file);
}

}  // namespace

OutputFile::OutputFile(const std::string& path, bool overwrite) : path_(path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) {
    throw std::invalid_argument(fmt::format("{}: is a folder, not a file to write", path));
  }
  if (fs::exists(status) && !overwrite) {
    throw std::invalid_argument(
        fmt::format("{}: exists already\nhint: pass --force to replace it", path));
  }
  remove_leftovers(path);
  temporary_ = (folder_of(path) / fmt::format("{}{}", temporary_prefix(path), ::getpid())).string();
  const int file = ::open(temporary_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
  if (file < 0) fail(path, "cannot be created");
  ::close(file);
  exists_ = true;
  remember(temporary_);
}

OutputFile::~OutputFile() {
  if (exists_) ::unlink(temporary_.c_str());
  forget(temporary_);
}

void OutputFile::write(std::string_view content) {
  const int file = ::open(temporary_.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) fail(path_, "cannot be written");
  try {
    write_at(file, content.data(), content.size(), 0, path_);
  } catch (...) {
    ::close(file);
    throw;
  }
  ::close(file);
}

void OutputFile::commit() {
  sync_path(temporary_, O_RDONLY);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "cannot be created");
  exists_ = false;
  forget(temporary_);
  sync_path(folder_of(path_).string(), O_RDONLY | O_DIRECTORY);
}

void remove_temporary_files_on_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::signal(signal, remove_and_die);
}

void write_at(int file, const char* bytes, std::size_t size, std::uint64_t offset,
              const std::string& path) {
  while (size > 0) {
    const ssize_t count = ::pwrite(file, bytes, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "cannot be written");
    bytes += count;
    size -= static_cast<std::size_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
}

SpoolFile::SpoolFile(const std::string& beside) : beside_(beside) {
  std::string name =
      (folder_of(beside) / fmt::format(".{}.spool-XXXXXX", fs::path(beside).filename().string()))
          .string();
  file_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (file_ < 0) fail(beside, "cannot be created");
  ::unlink(name.c_str());
  buffer_.reserve(kSpoolBufferBytes);
}

SpoolFile::~SpoolFile() {
  ::close(file_);
}

void SpoolFile::append(const void* bytes, std::size_t size) {
  if (buffer_.size() + size > kSpoolBufferBytes) flush();
  buffer_.append(static_cast<const char*>(bytes), size);
}

void SpoolFile::flush() {
  write_at(file_, buffer_.data(), buffer_.size(), written_, beside_);
  written_ += buffer_.size();
  buffer_.clear();
}

void SpoolFile::read(std::uint64_t offset, void* bytes, std::size_t size) {
  if (!buffer_.empty()) flush();
  char* out = static_cast<char*>(bytes);
  while (size > 0) {
    const ssize_t count = ::pread(file_, out, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(beside_, "cannot be read back");
    out += count;
    size -= static_cast<std::size_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
}

}  // namespace chaski
