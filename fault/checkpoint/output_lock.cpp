#include "fault/checkpoint/output_lock.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <stdexcept>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault/checkpoint/file_system.h"
#include "parallel/mpi/runtime.h"

namespace chaski {
namespace {

// What the lock's holder has written: "process 123 on host x".
std::string read_holder(int descriptor) {
  std::array<char, 512> text{};
  const ssize_t count = ::pread(descriptor, text.data(), text.size() - 1, 0);
  std::string holder(text.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  holder.resize(holder.find_last_not_of("\n") + 1);
  return holder.empty() ? "another process" : holder;
}

// False when the file was removed by its last holder between our opening and locking it.
bool still_there(int descriptor, const std::string& path) {
  struct stat opened {};
  struct stat named {};
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

[[noreturn]] void fail(int descriptor, const std::string& path, const char* operation) {
  const int error_number = errno;
  if (descriptor >= 0) ::close(descriptor);
  throw FileError(fmt::format("{}: cannot {}: {}", path, operation, std::strerror(error_number)),
                  error_number);
}

// An open and locked descriptor, or -1 when the file vanished meanwhile.
int try_lock(const std::string& directory, const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) fail(descriptor, path, "create");
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) fail(descriptor, path, "lock");
    const std::string holder = read_holder(descriptor);
    ::close(descriptor);
    throw std::invalid_argument(
        fmt::format("{}: is in use by {}\nhint: wait for that run to end, or choose another "
                    "run.output",
                    directory, holder));
  }
  if (still_there(descriptor, path)) return descriptor;
  ::close(descriptor);
  return -1;
}

}  // namespace

OutputLock::OutputLock(const std::string& directory) : path_(join_path(directory, ".lock")) {
  create_directories(posix_file_system(), directory);
  while (descriptor_ < 0) descriptor_ = try_lock(directory, path_);
  const std::string holder =
      fmt::format("process {} on host {}\n", ::getpid(), MpiRuntime::host_name());
  const auto bytes = static_cast<ssize_t>(holder.size());
  if (::ftruncate(descriptor_, 0) != 0 ||
      ::pwrite(descriptor_, holder.data(), holder.size(), 0) != bytes)
    fail(descriptor_, path_, "write");
}

OutputLock::~OutputLock() {
  ::unlink(path_.c_str());
  ::close(descriptor_);
}

}  // namespace chaski
