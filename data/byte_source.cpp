#include "data/byte_source.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>
#include <zlib.h>
#include <zstd.h>

namespace chaski {
namespace {

constexpr std::size_t kInputBytes = 256 * 1024;

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(const std::string& path) : path_(path) {
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0) fail("cannot be opened");
    struct stat status {};
    if (::fstat(file_, &status) != 0) fail("cannot be read");
    if (S_ISDIR(status.st_mode)) {
      ::close(file_);
      throw std::runtime_error(
          fmt::format("{}: is a directory, not a file\nhint: name files", path));
    }
    ::posix_fadvise(file_, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  PlainSource(const PlainSource&) = delete;
  PlainSource& operator=(const PlainSource&) = delete;
  ~PlainSource() override { ::close(file_); }

  std::size_t read(char* buffer, std::size_t size) override {
    ssize_t count;
    do {
      count = ::read(file_, buffer, size);
    } while (count < 0 && errno == EINTR);
    if (count < 0) fail(fmt::format("cannot be read at byte {}", offset_));
    offset_ += static_cast<std::uint64_t>(count);
    return static_cast<std::size_t>(count);
  }

  std::uint64_t consumed() const override { return offset_; }

 private:
  [[noreturn]] void fail(const std::string& what) {
    const int error = errno;
    if (file_ >= 0) ::close(file_);
    file_ = -1;
    std::string message = fmt::format("{}: {}: {}", path_, what, std::strerror(error));
    if (error == EACCES) message += "\nhint: check the permissions of the file and its folders";
    throw std::runtime_error(message);
  }

  std::string path_;
  int file_ = -1;
  std::uint64_t offset_ = 0;
};

// What gzip and zstd share: compressed input that arrives in blocks.
class CompressedSource : public ByteSource {
 public:
  explicit CompressedSource(const std::string& path)
      : path_(path), file_(path), input_(kInputBytes) {}

  std::uint64_t consumed() const override { return file_.consumed() - left_; }

 protected:
  // True when there is input to work on, after reading more of the file where needed.
  bool refill() {
    if (left_ == 0) {
      begin_ = 0;
      left_ = file_.read(input_.data(), input_.size());
    }
    return left_ > 0;
  }
  char* input() { return input_.data() + begin_; }
  std::size_t left() const { return left_; }
  void take(std::size_t count) {
    begin_ += count;
    left_ -= count;
  }
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error(
        fmt::format("{}: {} at byte {} of the compressed file\nhint: `gzip -t` or `zstd -t` tests "
                    "the file; it may have been copied only in part",
                    path_, what, consumed()));
  }

 private:
  std::string path_;
  PlainSource file_;
  std::vector<char> input_;
  std::size_t begin_ = 0;
  std::size_t left_ = 0;
};

class GzipSource : public CompressedSource {
 public:
  explicit GzipSource(const std::string& path) : CompressedSource(path) {
    // 16: gzip header and trailer, whose checksum zlib then verifies.
    if (inflateInit2(&stream_, 16 + MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~GzipSource() override { inflateEnd(&stream_); }

  std::size_t read(char* buffer, std::size_t size) override {
    stream_.next_out = reinterpret_cast<Bytef*>(buffer);
    stream_.avail_out = static_cast<uInt>(size);
    while (stream_.avail_out == size) {
      if (!refill()) {
        if (inside_member_ || !any_member_) fail("truncated gzip file");
        return 0;
      }
      if (!inside_member_ && any_member_ && skip_padding()) continue;
      inside_member_ = true;
      stream_.next_in = reinterpret_cast<Bytef*>(input());
      stream_.avail_in = static_cast<uInt>(left());
      const int result = inflate(&stream_, Z_NO_FLUSH);
      take(left() - stream_.avail_in);
      if (result == Z_STREAM_END) {
        inside_member_ = false;
        any_member_ = true;
        inflateReset(&stream_);
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        fail(any_member_ ? "damaged gzip data or garbage after its end" : "damaged gzip data");
      }
    }
    return size - stream_.avail_out;
  }

 private:
  // Zeros after the last member are padding of tapes and block devices, as for gzip itself.
  bool skip_padding() {
    std::size_t zeros = 0;
    while (zeros < left() && input()[zeros] == 0) ++zeros;
    take(zeros);
    return zeros > 0;
  }

  z_stream stream_{};
  bool inside_member_ = false;
  bool any_member_ = false;
};

class ZstdSource : public CompressedSource {
 public:
  explicit ZstdSource(const std::string& path)
      : CompressedSource(path), context_(ZSTD_createDCtx(), &ZSTD_freeDCtx) {
    if (!context_) throw std::bad_alloc();
    // Corpora are often packed with --long=31.
    ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, sizeof(void*) == 8 ? 31 : 30);
  }

  std::size_t read(char* buffer, std::size_t size) override {
    ZSTD_outBuffer output{buffer, size, 0};
    while (output.pos == 0) {
      const bool more = refill();
      if (!more && !any_input_) fail("truncated zstd file");
      if (!more && frame_done_) return 0;
      any_input_ = true;
      ZSTD_inBuffer in{input(), left(), 0};
      const std::size_t result = ZSTD_decompressStream(context_.get(), &output, &in);
      take(in.pos);
      if (ZSTD_isError(result)) fail("damaged zstd data");
      frame_done_ = result == 0;
      if (!more && output.pos == 0 && !frame_done_) fail("truncated zstd file");
    }
    return output.pos;
  }

 private:
  std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context_;
  bool frame_done_ = false;
  bool any_input_ = false;
};

}  // namespace

Compression compression_of(const std::string& path) {
  if (path.ends_with(".gz")) return Compression::gzip;
  if (path.ends_with(".zst")) return Compression::zstd;
  return Compression::none;
}

std::unique_ptr<ByteSource> open_byte_source(const std::string& path) {
  switch (compression_of(path)) {
    case Compression::gzip:
      return std::make_unique<GzipSource>(path);
    case Compression::zstd:
      return std::make_unique<ZstdSource>(path);
    case Compression::none:
      break;
  }
  return std::make_unique<PlainSource>(path);
}

}  // namespace chaski
