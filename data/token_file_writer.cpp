#include "data/token_file_writer.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <unistd.h>
#include <utility>
#include <xxhash.h>

#include "data/hdf5_handle.h"
#include "data/output_file.h"

namespace chaski {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr std::size_t kBufferBytes = 1 << 20;

// A dataset whose space is reserved in the file: filled from front to back past HDF5, which
// takes no lock and gives the errors of the disk as they are.
class ArrayWriter {
 public:
  ArrayWriter(Hdf5Handle dataset, int file, std::uint64_t bytes, const std::string& path)
      : dataset_(std::move(dataset)),
        file_(file),
        begin_(H5Dget_offset(dataset_.get())),
        bytes_(bytes),
        path_(path),
        hash_(XXH3_createState(), &XXH3_freeState) {
    if (begin_ == HADDR_UNDEF) {
      throw std::runtime_error(fmt::format("{}: HDF5 reserved no space", path_));
    }
    if (!hash_) throw std::bad_alloc();
    XXH3_64bits_reset(hash_.get());
  }

  void add(const void* data, std::size_t size) {
    if (written_ + buffer_.size() + size > bytes_) {
      throw std::logic_error(fmt::format("{}: more data than announced", path_));
    }
    buffer_.append(static_cast<const char*>(data), size);
    if (buffer_.size() >= kBufferBytes) flush();
  }

  // Writes what is left and returns the checksum of all.
  std::uint64_t finish() {
    flush();
    if (written_ != bytes_) throw std::logic_error(fmt::format("{}: data is missing", path_));
    return XXH3_64bits_digest(hash_.get());
  }

  hid_t dataset() const { return dataset_.get(); }

 private:
  void flush() {
    XXH3_64bits_update(hash_.get(), buffer_.data(), buffer_.size());
    write_at(file_, buffer_.data(), buffer_.size(), begin_ + written_, path_);
    written_ += buffer_.size();
    buffer_.clear();
  }

  Hdf5Handle dataset_;
  int file_;
  std::uint64_t begin_;
  std::uint64_t bytes_;
  std::uint64_t written_ = 0;
  std::string path_;
  std::string buffer_;
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash_;
};

}  // namespace

class TokenFileWriter::Impl {
 public:
  Impl(const std::string& path, bool overwrite) : output_(path, overwrite) {
    const QuietHdf5 quiet;
    const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS));
    // The newer file format: all metadata carries checksums.
    H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18);
    H5Pset_file_locking(access.get(), false, true);
    H5Pset_alignment(access.get(), 4096, 4096);
    const std::string& name = output_.temporary_path();
    const Hdf5Handle creation = untimed(H5P_FILE_CREATE);
    file_ = Hdf5Handle(H5Fcreate(name.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()));
    check(static_cast<bool>(file_));
    raw_ = ::open(name.c_str(), O_WRONLY | O_CLOEXEC);
    check(raw_ >= 0);
  }

  ~Impl() {
    const QuietHdf5 quiet;
    if (raw_ >= 0) ::close(raw_);
    tokens_.reset();
    documents_.reset();
    file_.close();
  }

  void write_header(const TokenFileHeader& header) {
    const QuietHdf5 quiet;
    bytes_per_token_ = header.bytes_per_token();
    const hid_t root = file_.get();
    set_text(root, "format", "chaski-tokens");
    set_number(root, "format_version", kTokenFileVersion);
    set_text(root, "creator", header.creator);
    set_text(root, "split", header.split);
    set_number(root, "vocab_size", header.vocab_size);
    set_number(root, "eos_id", header.eos_id);
    set_text(root, "tokenizer_fingerprint", header.tokenizer_fingerprint);
    write_bytes("/tokenizer", header.tokenizer_model);
    nlohmann::json sources = nlohmann::json::array();
    for (const auto& source : header.sources) {
      sources.push_back({{"path", source.path}, {"bytes", source.bytes}});
    }
    // File names need not be UTF-8.
    write_bytes("/sources", sources.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }

  void begin_part(Part part, const PartSize& size) {
    const QuietHdf5 quiet;
    std::string group;
    if (part == Part::validation) {
      group = "/validation";
      const Hdf5Handle creation = untimed(H5P_GROUP_CREATE);
      const Hdf5Handle created(
          H5Gcreate2(file_.get(), group.c_str(), H5P_DEFAULT, creation.get(), H5P_DEFAULT));
      check(static_cast<bool>(created));
    }
    tokens_ = reserve(group + "/tokens", bytes_per_token_ == 2 ? H5T_STD_U16LE : H5T_STD_U32LE,
                      size.num_tokens, bytes_per_token_);
    documents_ =
        reserve(group + "/documents", H5T_STD_U64LE, size.num_documents + 1, sizeof(std::uint64_t));
    set_number(tokens_->dataset(), "byte_count", size.num_bytes);
    const std::uint64_t first = 0;
    documents_->add(&first, sizeof first);
  }

  void add_tokens(std::span<const std::byte> ids) { tokens_->add(ids.data(), ids.size()); }
  void add_document_end(std::uint64_t end) { documents_->add(&end, sizeof end); }

  void end_part() {
    const QuietHdf5 quiet;
    finish(tokens_);
    finish(documents_);
  }

  void commit() {
    const QuietHdf5 quiet;
    errno = 0;
    check(file_.close());
    ::close(std::exchange(raw_, -1));
    output_.commit();
  }

 private:
  void check(bool success) const {
    if (success) return;
    const int error = errno;
    std::string message = fmt::format("{}: the token file cannot be written", output_.path());
    if (error != 0) message += fmt::format(": {}", std::strerror(error));
    if (error == ENOSPC || error == EDQUOT) message += "\nhint: free some space on that disk";
    throw std::runtime_error(message);
  }

  // Properties of something new without the time of its creation: the same corpus gives the same
  // file, byte by byte.
  static Hdf5Handle untimed(hid_t property_class) {
    Hdf5Handle properties(H5Pcreate(property_class));
    H5Pset_obj_track_times(properties.get(), false);
    return properties;
  }

  void set_attribute(hid_t object, const char* name, hid_t type, const void* value) {
    errno = 0;
    const Hdf5Handle space(H5Screate(H5S_SCALAR));
    const Hdf5Handle attribute(
        H5Acreate2(object, name, type, space.get(), H5P_DEFAULT, H5P_DEFAULT));
    check(attribute && H5Awrite(attribute.get(), type, value) >= 0);
  }

  void set_number(hid_t object, const char* name, std::uint64_t value) {
    set_attribute(object, name, H5T_STD_U64LE, &value);
  }

  void set_text(hid_t object, const char* name, const std::string& value) {
    const Hdf5Handle type(H5Tcopy(H5T_C_S1));
    H5Tset_size(type.get(), value.size() + 1);
    H5Tset_cset(type.get(), H5T_CSET_UTF8);
    set_attribute(object, name, type.get(), value.c_str());
  }

  std::unique_ptr<ArrayWriter> reserve(const std::string& name, hid_t type, std::uint64_t size,
                                       std::uint64_t width) {
    errno = 0;
    const hsize_t dimension = size;
    const Hdf5Handle space(H5Screate_simple(1, &dimension, nullptr));
    const Hdf5Handle creation = untimed(H5P_DATASET_CREATE);
    H5Pset_layout(creation.get(), H5D_CONTIGUOUS);
    H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER);
    Hdf5Handle dataset(H5Dcreate2(file_.get(), name.c_str(), type, space.get(), H5P_DEFAULT,
                                  creation.get(), H5P_DEFAULT));
    check(static_cast<bool>(dataset));
    return std::make_unique<ArrayWriter>(std::move(dataset), raw_, size * width, output_.path());
  }

  void finish(std::unique_ptr<ArrayWriter>& array) {
    set_number(array->dataset(), "xxh3_64", array->finish());
    array.reset();
  }

  void write_bytes(const std::string& name, std::string_view bytes) {
    auto array = reserve(name, H5T_STD_U8LE, bytes.size(), 1);
    array->add(bytes.data(), bytes.size());
    finish(array);
  }

  OutputFile output_;
  std::uint64_t bytes_per_token_ = 2;
  Hdf5Handle file_;
  int raw_ = -1;
  std::unique_ptr<ArrayWriter> tokens_, documents_;
};

TokenFileWriter::TokenFileWriter(const std::string& path, bool overwrite)
    : impl_(std::make_unique<Impl>(path, overwrite)) {}
TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::write_header(const TokenFileHeader& header) {
  impl_->write_header(header);
}
void TokenFileWriter::begin_part(Part part, const PartSize& size) {
  impl_->begin_part(part, size);
}
void TokenFileWriter::add_tokens(std::span<const std::byte> ids) {
  impl_->add_tokens(ids);
}
void TokenFileWriter::add_document_end(std::uint64_t end) {
  impl_->add_document_end(end);
}
void TokenFileWriter::end_part() {
  impl_->end_part();
}
void TokenFileWriter::commit() {
  impl_->commit();
}

}  // namespace chaski
