#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace chaski {

// A file that appears under its name only when it is whole. It is written under a temporary name
// in the same folder, `.NAME.tmp-PID`, which goes away when this object does or, after
// remove_temporary_files_on_signals(), when the process is interrupted. What a killed process left
// behind is removed by the next one that writes the same file.
class OutputFile {
 public:
  // Creates the empty temporary file. Throws std::invalid_argument when `path` exists and
  // `overwrite` is not set or when it is a folder, std::runtime_error when it cannot be created.
  OutputFile(const std::string& path, bool overwrite);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  const std::string& path() const { return path_; }
  const std::string& temporary_path() const { return temporary_; }

  // Writes `content` into the temporary file. Throws std::runtime_error.
  void write(std::string_view content);
  // Makes the content durable and gives the file its name. Throws std::runtime_error.
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  bool exists_ = false;
};

// Makes SIGINT, SIGTERM and SIGHUP remove the temporary files of this process before they end it.
void remove_temporary_files_on_signals();

// Writes all of `bytes` at `offset`. Throws std::runtime_error naming `path`.
void write_at(int file, const char* bytes, std::size_t size, std::uint64_t offset,
              const std::string& path);

// A nameless file for data on their way; gone when this object or the process is.
class SpoolFile {
 public:
  // Created in the folder of `beside`, which error messages name.
  explicit SpoolFile(const std::string& beside);
  SpoolFile(const SpoolFile&) = delete;
  SpoolFile& operator=(const SpoolFile&) = delete;
  ~SpoolFile();

  void append(const void* bytes, std::size_t size);
  std::uint64_t size() const { return written_ + buffer_.size(); }
  // Reads what has been appended; [offset, offset + size) must lie inside.
  void read(std::uint64_t offset, void* bytes, std::size_t size);

 private:
  void flush();

  std::string beside_;
  int file_ = -1;
  std::uint64_t written_ = 0;
  std::string buffer_;
};

}  // namespace chaski
