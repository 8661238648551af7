#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace chaski {

// The bytes of a file, decompressed on the way. Read errors and damaged or truncated archives
// throw std::runtime_error naming the file and the offset.
class ByteSource {
 public:
  virtual ~ByteSource() = default;

  // Fills `buffer` with up to `size` bytes; 0 only at the end of the file.
  virtual std::size_t read(char* buffer, std::size_t size) = 0;

  // Bytes of the file on disk that have been consumed: for showing progress.
  virtual std::uint64_t consumed() const = 0;
};

// How `path` is compressed, by its suffix.
enum class Compression { none, gzip, zstd };
Compression compression_of(const std::string& path);

// Opens `path`. Throws std::runtime_error when it cannot be opened or is a directory.
std::unique_ptr<ByteSource> open_byte_source(const std::string& path);

}  // namespace chaski
