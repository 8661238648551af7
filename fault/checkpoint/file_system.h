#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace chaski {

// A file operation that failed. what() names the path, the operation and the reason.
class FileError : public std::runtime_error {
 public:
  FileError(const std::string& message, int error_number)
      : std::runtime_error(message), error_number_(error_number) {}
  int error_number() const { return error_number_; }  // as errno

 private:
  int error_number_;
};

// An open file. Every member throws FileError when it fails.
class File {
 public:
  virtual ~File() = default;  // closes, ignoring errors: call close() where they matter
  // Reads up to `size` bytes from `offset`; fewer only at the end of the file.
  virtual std::size_t read_at(std::uint64_t offset, void* buffer, std::size_t size) = 0;
  // Writes all bytes; beyond the end the file grows, a gap reads as zeros.
  virtual void write_at(std::uint64_t offset, const void* buffer, std::size_t size) = 0;
  virtual void truncate(std::uint64_t size) = 0;
  virtual std::uint64_t size() = 0;
  // Returns when the contents would survive a power failure. The name of a new file does so only
  // after sync_directory() of its directory.
  virtual void sync() = 0;
  virtual void close() = 0;
};

struct FileStatus {
  bool is_directory = false;
  std::uint64_t bytes = 0;
};

// The file operations of everything that saves, so that tests can lose what was not synced, fail at
// a chosen byte and stop at a chosen operation. Members may be called from several threads. All
// throw FileError.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual std::unique_ptr<File> open(const std::string& path) = 0;    // for reading
  virtual std::unique_ptr<File> create(const std::string& path) = 0;  // empty, reading and writing
  virtual void create_directory(const std::string& path) = 0;         // fine when it exists
  virtual void rename(const std::string& from, const std::string& to) = 0;  // atomic
  virtual void remove_file(const std::string& path) = 0;
  virtual void remove_directory(const std::string& path) = 0;             // an empty one
  virtual std::vector<std::string> list(const std::string& path) = 0;     // names, sorted
  virtual std::optional<FileStatus> status(const std::string& path) = 0;  // none: does not exist
  virtual void sync_directory(const std::string& path) = 0;
  virtual std::uint64_t free_bytes(const std::string& path) = 0;  // 0 when unknown
};

// The operating system's. One object for the whole program.
FileSystem& posix_file_system();

// The contents of a file of at most `max_bytes`. Throws FileError, also when it is larger.
std::string read_whole_file(FileSystem& files, const std::string& path, std::uint64_t max_bytes);
// Writes `path` so that after a failure at any time it holds the old or the new contents: a
// temporary file (`path` + ".tmp"), sync, rename, sync of the directory.
void write_file_atomically(FileSystem& files, const std::string& path, const std::string& contents);
// The same but for the last: whoever looks finds all or nothing, after a power failure perhaps
// nothing.
void write_file_by_rename(FileSystem& files, const std::string& path, const std::string& contents);
// Creates the directory and its missing parents, durably.
void create_directories(FileSystem& files, const std::string& path);
// Removes a file or a directory with everything in it; fine when it does not exist.
void remove_tree(FileSystem& files, const std::string& path);

std::string parent_directory(const std::string& path);
std::string join_path(const std::string& directory, const std::string& name);

}  // namespace chaski
