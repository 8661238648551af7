#include "fault/checkpoint/file_system.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace chaski {
namespace {

// One system call moves at most 2 GiB; smaller pieces let a save be interrupted by an error early.
constexpr std::size_t kMaxTransfer = std::size_t{64} << 20;

[[noreturn]] void fail(const std::string& path, const char* operation) {
  const int error_number = errno;
  throw FileError(fmt::format("{}: cannot {}: {}", path, operation, std::strerror(error_number)),
                  error_number);
}

class PosixFile final : public File {
 public:
  PosixFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  ~PosixFile() override {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  std::size_t read_at(std::uint64_t offset, void* buffer, std::size_t size) override {
    std::size_t done = 0;
    while (done < size) {
      const ssize_t count =
          ::pread(descriptor_, static_cast<char*>(buffer) + done,
                  std::min(size - done, kMaxTransfer), static_cast<off_t>(offset + done));
      if (count == 0) break;
      if (count > 0) done += static_cast<std::size_t>(count);
      if (count < 0 && errno != EINTR) fail(path_, "read");
    }
    return done;
  }

  void write_at(std::uint64_t offset, const void* buffer, std::size_t size) override {
    std::size_t done = 0;
    while (done < size) {
      const ssize_t count =
          ::pwrite(descriptor_, static_cast<const char*>(buffer) + done,
                   std::min(size - done, kMaxTransfer), static_cast<off_t>(offset + done));
      if (count > 0) done += static_cast<std::size_t>(count);
      if (count < 0 && errno != EINTR) fail(path_, "write");
    }
  }

  void truncate(std::uint64_t size) override {
    if (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0) fail(path_, "resize");
  }

  std::uint64_t size() override {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail(path_, "examine");
    return static_cast<std::uint64_t>(status.st_size);
  }

  void sync() override {
    if (::fsync(descriptor_) != 0) fail(path_, "sync");
  }

  void close() override {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    if (descriptor >= 0 && ::close(descriptor) != 0) fail(path_, "close");
  }

 private:
  std::string path_;
  int descriptor_;
};

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<File> open(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail(path, "open");
    return std::make_unique<PosixFile>(path, descriptor);
  }

  std::unique_ptr<File> create(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) fail(path, "create");
    return std::make_unique<PosixFile>(path, descriptor);
  }

  void create_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0777) == 0) return;
    if (errno == EEXIST) {
      const auto existing = status(path);
      if (existing && existing->is_directory) return;
      errno = EEXIST;
    }
    fail(path, "create the directory");
  }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail(from, "rename");
  }

  void remove_file(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) fail(path, "remove");
  }

  void remove_directory(const std::string& path) override {
    if (::rmdir(path.c_str()) != 0) fail(path, "remove the directory");
  }

  std::vector<std::string> list(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
    if (!directory) fail(path, "read the directory");
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(directory.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
      errno = 0;
    }
    if (errno != 0) fail(path, "read the directory");
    std::sort(names.begin(), names.end());
    return names;
  }

  std::optional<FileStatus> status(const std::string& path) override {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
      fail(path, "examine");
    }
    return FileStatus{S_ISDIR(status.st_mode), static_cast<std::uint64_t>(status.st_size)};
  }

  void sync_directory(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) fail(path, "open the directory");
    const int result = ::fsync(descriptor);
    const int error_number = errno;
    ::close(descriptor);
    errno = error_number;
    // Some network file systems cannot sync a directory; their renames are durable by themselves.
    if (result != 0 && error_number != EINVAL && error_number != ENOTSUP)
      fail(path, "sync the directory");
  }

  std::uint64_t free_bytes(const std::string& path) override {
    struct statvfs status {};
    if (::statvfs(path.c_str(), &status) != 0) return 0;
    return static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
  }
};

}  // namespace

FileSystem& posix_file_system() {
  static PosixFileSystem files;
  return files;
}

std::string read_whole_file(FileSystem& files, const std::string& path, std::uint64_t max_bytes) {
  const auto file = files.open(path);
  const std::uint64_t size = file->size();
  if (size > max_bytes)
    throw FileError(fmt::format("{}: has {} bytes, at most {} are expected", path, size, max_bytes),
                    EFBIG);
  std::string contents(size, '\0');
  contents.resize(file->read_at(0, contents.data(), contents.size()));
  return contents;
}

void write_file_by_rename(FileSystem& files, const std::string& path, const std::string& contents) {
  const std::string temporary = path + ".tmp";
  const auto file = files.create(temporary);
  file->write_at(0, contents.data(), contents.size());
  file->sync();
  file->close();
  files.rename(temporary, path);
}

void write_file_atomically(FileSystem& files, const std::string& path,
                           const std::string& contents) {
  write_file_by_rename(files, path, contents);
  files.sync_directory(parent_directory(path));
}

void create_directories(FileSystem& files, const std::string& path) {
  const auto existing = files.status(path);
  if (existing && existing->is_directory) return;
  const std::string parent = parent_directory(path);
  if (parent != path) create_directories(files, parent);
  files.create_directory(path);
  files.sync_directory(parent);
}

void remove_tree(FileSystem& files, const std::string& path) {
  const auto existing = files.status(path);
  if (!existing) return;
  if (!existing->is_directory) return files.remove_file(path);
  for (const std::string& name : files.list(path)) remove_tree(files, join_path(path, name));
  files.remove_directory(path);
}

std::string parent_directory(const std::string& path) {
  std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const std::size_t slash = path.find_last_of('/', end);
  if (slash == std::string::npos) return ".";
  end = path.find_last_not_of('/', slash);
  return end == std::string::npos ? "/" : path.substr(0, end + 1);
}

std::string join_path(const std::string& directory, const std::string& name) {
  if (directory.empty()) return name;
  return directory.back() == '/' ? directory + name : directory + "/" + name;
}

}  // namespace chaski
