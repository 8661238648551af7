#include "data/token_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "data/hdf5_handle.h"

namespace chaski {
namespace {

// HDF5 1.10 can crash at exit, in its own tidying up, when it could not close a damaged file
// before. Nothing here needs the tidying: every file is closed where it was opened. It can only be
// turned off before HDF5 is first used.
[[maybe_unused]] const bool hdf5_tidies_at_exit = H5dont_atexit() < 0;

constexpr const char* kDamageHint =
    "\nhint: copy the file again where there is an intact one, else make it again with `chaski "
    "tokenize`";

constexpr std::uint64_t kMostHeaderBytes = 1 << 30;  // of the model, of the list of sources

template <class T>
T load(const unsigned char* data, std::uint64_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

// Null where HDF5 cannot open it.
Hdf5Handle open_hdf5(const std::string& path) {
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS));
  // Some network file systems have no locks; a token file is never changed once it has its name.
  H5Pset_file_locking(access.get(), false, true);
  return Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()));
}

// Copies ids out; the largest of them.
template <class T>
std::uint32_t copy_ids(const unsigned char* data, std::uint64_t begin, std::uint64_t count,
                       std::int32_t* out) {
  std::uint32_t largest = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    const T id = load<T>(data, begin + i);
    largest = std::max<std::uint32_t>(largest, id);
    out[i] = static_cast<std::int32_t>(id);
  }
  return largest;
}

}  // namespace

const char* name_of(Part part) {
  return part == Part::train ? "train" : "validation";
}

void TokenPart::read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const {
  if (begin > num_tokens_ || count > num_tokens_ - begin) {
    throw std::out_of_range(fmt::format("{}: tokens [{}, {} + {}) asked for, it holds {}", where_,
                                        begin, begin, count, num_tokens_));
  }
  const std::uint32_t largest = bytes_per_token_ == 2
                                    ? copy_ids<std::uint16_t>(tokens_.data, begin, count, out)
                                    : copy_ids<std::uint32_t>(tokens_.data, begin, count, out);
  if (largest >= vocab_size_ && count > 0) {
    const auto bad = std::find(out, out + count, static_cast<std::int32_t>(largest)) - out;
    throw std::runtime_error(
        fmt::format("{}: token {} has id {}, outside the vocabulary of {}: the file is damaged",
                    where_, begin + static_cast<std::uint64_t>(bad), largest, vocab_size_));
  }
}

std::uint64_t TokenPart::document_offset(std::uint64_t index) const {
  if (index > num_documents_) {
    throw std::out_of_range(
        fmt::format("{}: document {} asked for, it holds {}", where_, index, num_documents_));
  }
  const std::uint64_t offset = load<std::uint64_t>(documents_.data, index);
  if (offset > num_tokens_) {
    throw std::runtime_error(
        fmt::format("{}: document {} begins at token {} of {}: the file is "
                    "damaged",
                    where_, index, offset, num_tokens_));
  }
  return offset;
}

std::uint64_t TokenPart::document_of(std::uint64_t token) const {
  if (token >= num_tokens_) {
    throw std::out_of_range(
        fmt::format("{}: token {} asked for, it holds {}", where_, token, num_tokens_));
  }
  std::uint64_t low = 0, high = num_documents_;  // the answer lies in [low, high)
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    (document_offset(middle) <= token ? low : high) = middle;
  }
  if (document_offset(low) > token || document_offset(low + 1) <= token) {
    throw std::runtime_error(
        fmt::format("{}: the documents are not in order: the file is damaged", where_));
  }
  return low;
}

namespace {

// A file that is read from end to end would count as this process's memory, although the system's
// cache holds it anyway. Whoever needs the pages maps them again.
void unmap_pages(const unsigned char* data, std::uint64_t bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

// Also true when it was asked to stop.
bool TokenPart::checksum_is_right(const Array& array, std::uint64_t width,
                                  const std::stop_token& stop) const {
  constexpr std::uint64_t kPieceBytes = 4 << 20;
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       XXH3_freeState);
  if (!state) throw std::bad_alloc();
  XXH3_64bits_reset(state.get());
  const std::uint64_t size = array.size * width;
  for (std::uint64_t begin = 0; begin < size; begin += kPieceBytes) {
    if (stop.stop_requested()) return true;
    const std::uint64_t count = std::min(kPieceBytes, size - begin);
    XXH3_64bits_update(state.get(), array.data + begin, count);
    unmap_pages(array.data + begin, count);
  }
  return XXH3_64bits_digest(state.get()) == array.checksum;
}

bool TokenPart::verify_checksum(const std::stop_token& stop) const {
  const auto check = [&](const Array& array, std::uint64_t width, const char* name) {
    if (checksum_is_right(array, width, stop)) return;
    throw std::runtime_error(fmt::format(
        "{}: the checksum of its {} is wrong: the file is damaged{}", where_, name, kDamageHint));
  };
  check(tokens_, bytes_per_token_, "tokens");
  check(documents_, sizeof(std::uint64_t), "documents");
  std::vector<std::int32_t> buffer(1 << 16);
  for (std::uint64_t begin = 0; begin < num_tokens_ && !stop.stop_requested();
       begin += buffer.size()) {
    const std::uint64_t count = std::min<std::uint64_t>(buffer.size(), num_tokens_ - begin);
    read(begin, count, buffer.data());
    unmap_pages(tokens_.data + begin * bytes_per_token_, count * bytes_per_token_);
  }
  for (std::uint64_t i = 0; i < num_documents_ && !stop.stop_requested(); ++i) {
    if (document_offset(i) >= document_offset(i + 1)) {
      throw std::runtime_error(
          fmt::format("{}: document {} is empty or out of order: the file is "
                      "damaged{}",
                      where_, i, kDamageHint));
    }
  }
  return !stop.stop_requested();
}

// Reads a file's description through HDF5 and maps its arrays. Believes nothing in it.
class TokenFile::Opener {
 public:
  explicit Opener(const std::string& path) : path_(path) {}

  std::shared_ptr<const TokenFile> open() {
    const QuietHdf5 quiet;
    std::shared_ptr<TokenFile> file(new TokenFile);
    file->path_ = path_;
    map(*file);
    file_ = open_hdf5(path_);
    if (!file_) damaged("HDF5 cannot open it");
    read_header(file->header_);
    read_part(*file, Part::train);
    if (file->header_.split != "none") read_part(*file, Part::validation);
    return file;
  }

 private:
  [[noreturn]] void damaged(const std::string& what) const {
    throw std::runtime_error(
        fmt::format("{}: the token file is damaged: {}{}", path_, what, kDamageHint));
  }
  [[noreturn]] void not_a_token_file() const {
    throw std::invalid_argument(
        fmt::format("{}: is not a token file\nhint: make one with `chaski tokenize`", path_));
  }

  void map(TokenFile& file) {
    const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (descriptor < 0 || ::fstat(descriptor, &status) != 0) {
      const int error = errno;
      if (descriptor >= 0) ::close(descriptor);
      throw std::runtime_error(
          fmt::format("{}: the token file cannot be opened: {}", path_, std::strerror(error)));
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
    if (S_ISREG(status.st_mode) && size_ > 0) {
      file.map_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    }
    ::close(descriptor);
    if (!S_ISREG(status.st_mode) || size_ == 0) not_a_token_file();
    if (file.map_ == MAP_FAILED) {
      file.map_ = nullptr;
      throw std::runtime_error(
          fmt::format("{}: cannot be mapped: {}", path_, std::strerror(errno)));
    }
    file.map_bytes_ = size_;
    bytes_ = static_cast<const unsigned char*>(file.map_);
    // Superblock 2 and up have checksums over all metadata, so that HDF5 notices damage by itself;
    // chaski writes no other.
    constexpr unsigned char kSignature[] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1A, '\n'};
    if (size_ < 64 || std::memcmp(bytes_, kSignature, 8) != 0 || bytes_[8] < 2) not_a_token_file();
  }

  bool is_hard_link(const char* name) const {
    if (H5Lexists(file_.get(), name, H5P_DEFAULT) <= 0) return false;
    H5L_info_t info{};
    return H5Lget_info(file_.get(), name, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
  }

  Hdf5Handle attribute(hid_t object, const char* name) const {
    if (H5Aexists(object, name) <= 0) damaged(fmt::format("no attribute \"{}\"", name));
    Hdf5Handle found(H5Aopen(object, name, H5P_DEFAULT));
    const Hdf5Handle space(found ? H5Aget_space(found.get()) : -1);
    if (!space || H5Sget_simple_extent_npoints(space.get()) != 1) {
      damaged(fmt::format("attribute \"{}\" is not one value", name));
    }
    return found;
  }

  std::uint64_t number(hid_t object, const char* name) const {
    const Hdf5Handle found = attribute(object, name);
    const Hdf5Handle type(H5Aget_type(found.get()));
    std::uint64_t value = 0;
    if (!type || H5Tequal(type.get(), H5T_STD_U64LE) <= 0 ||
        H5Aread(found.get(), H5T_NATIVE_UINT64, &value) < 0) {
      damaged(fmt::format("attribute \"{}\" is not a number", name));
    }
    return value;
  }

  std::string text(hid_t object, const char* name) const {
    const Hdf5Handle found = attribute(object, name);
    const Hdf5Handle type(H5Aget_type(found.get()));
    if (!type || H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) != 0) {
      damaged(fmt::format("attribute \"{}\" is not a text", name));
    }
    const std::size_t size = H5Tget_size(type.get());
    if (size > 65536) damaged(fmt::format("attribute \"{}\" is too long", name));
    std::string value(size, '\0');
    if (H5Aread(found.get(), type.get(), value.data()) < 0) {
      damaged(fmt::format("attribute \"{}\" cannot be read", name));
    }
    value.resize(::strnlen(value.c_str(), size));
    return value;
  }

  // A dataset's place in the file, if it is what the format says it is.
  TokenPart::Array array(const std::string& name, hid_t type, std::uint64_t width,
                         Hdf5Handle* handle = nullptr) const {
    if (!is_hard_link(name.c_str())) damaged(fmt::format("no dataset {}", name));
    Hdf5Handle dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
    const Hdf5Handle space(dataset ? H5Dget_space(dataset.get()) : -1);
    const Hdf5Handle stored(dataset ? H5Dget_type(dataset.get()) : -1);
    const Hdf5Handle layout(dataset ? H5Dget_create_plist(dataset.get()) : -1);
    if (!space || !stored || !layout) damaged(fmt::format("{} cannot be read", name));
    hsize_t size = 0;
    if (H5Sget_simple_extent_ndims(space.get()) != 1 ||
        H5Sget_simple_extent_dims(space.get(), &size, nullptr) != 1) {
      damaged(fmt::format("{} has not one dimension", name));
    }
    if (H5Tequal(stored.get(), type) <= 0) damaged(fmt::format("{} has another type", name));
    if (H5Pget_layout(layout.get()) != H5D_CONTIGUOUS || H5Pget_external_count(layout.get()) != 0) {
      damaged(fmt::format("{} is not stored in one piece", name));
    }
    TokenPart::Array result;
    result.size = size;
    result.checksum = number(dataset.get(), "xxh3_64");
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (size == 0 || offset == HADDR_UNDEF || offset > size_ || size > (size_ - offset) / width) {
      damaged(fmt::format("{} lies outside the file", name));
    }
    result.data = bytes_ + offset;
    if (handle != nullptr) *handle = std::move(dataset);
    return result;
  }

  std::string checked_bytes(const std::string& name) const {
    const TokenPart::Array found = array(name, H5T_STD_U8LE, 1);
    if (found.size > kMostHeaderBytes || XXH3_64bits(found.data, found.size) != found.checksum) {
      damaged(fmt::format("the checksum of {} is wrong", name));
    }
    return std::string(reinterpret_cast<const char*>(found.data), found.size);
  }

  void read_header(TokenFileHeader& header) const {
    const hid_t root = file_.get();
    if (H5Aexists(root, "format") <= 0 || text(root, "format") != "chaski-tokens") {
      not_a_token_file();
    }
    const std::uint64_t version = number(root, "format_version");
    if (version != kTokenFileVersion) {
      throw std::invalid_argument(
          fmt::format("{}: is a token file of version {}, this program reads version {}\n"
                      "hint: make it again with `chaski tokenize`",
                      path_, version, kTokenFileVersion));
    }
    header.creator = text(root, "creator");
    header.split = text(root, "split");
    header.vocab_size = number(root, "vocab_size");
    header.eos_id = number(root, "eos_id");
    header.tokenizer_fingerprint = text(root, "tokenizer_fingerprint");
    header.tokenizer_model = checked_bytes("/tokenizer");
    const XXH128_hash_t hash =
        XXH3_128bits(header.tokenizer_model.data(), header.tokenizer_model.size());
    if (header.tokenizer_fingerprint != fmt::format("{:016x}{:016x}", hash.high64, hash.low64)) {
      damaged("the tokenizer has another fingerprint");
    }
    if (header.vocab_size == 0 || header.vocab_size > INT32_MAX ||
        header.eos_id >= header.vocab_size) {
      damaged(fmt::format("vocabulary of {}, EOS {}", header.vocab_size, header.eos_id));
    }
    read_sources(header);
  }

  void read_sources(TokenFileHeader& header) const {
    try {
      for (const auto& source : nlohmann::json::parse(checked_bytes("/sources"))) {
        header.sources.push_back(
            {source.at("path").get<std::string>(), source.at("bytes").get<std::uint64_t>()});
      }
    } catch (const nlohmann::json::exception&) {
      damaged("the list of sources cannot be read");
    }
  }

  void read_part(TokenFile& file, Part part) const {
    const std::string group = part == Part::train ? "" : "/validation";
    const std::uint64_t width = file.header_.bytes_per_token();
    auto result = std::make_unique<TokenPart>();
    Hdf5Handle dataset;
    result->where_ = fmt::format("{} ({} part)", path_, name_of(part));
    result->tokens_ =
        array(group + "/tokens", width == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, width, &dataset);
    result->documents_ = array(group + "/documents", H5T_STD_U64LE, sizeof(std::uint64_t));
    result->bytes_per_token_ = width;
    result->vocab_size_ = file.header_.vocab_size;
    result->num_tokens_ = result->tokens_.size;
    result->num_bytes_ = number(dataset.get(), "byte_count");
    result->num_documents_ = result->documents_.size - 1;
    if (result->documents_.size < 2 || result->document_offset(0) != 0 ||
        result->document_offset(result->num_documents_) != result->num_tokens_) {
      damaged(fmt::format("the documents of the {} part do not cover it", name_of(part)));
    }
    file.parts_[static_cast<int>(part)] = std::move(result);
  }

  std::string path_;
  std::uint64_t size_ = 0;
  const unsigned char* bytes_ = nullptr;
  Hdf5Handle file_;
};

std::shared_ptr<const TokenFile> TokenFile::open(const std::string& path) {
  return Opener(path).open();
}

bool TokenFile::is_token_file(const std::string& path) {
  const QuietHdf5 quiet;
  const Hdf5Handle file = open_hdf5(path);
  if (!file || H5Aexists(file.get(), "format") <= 0) return false;
  const Hdf5Handle attribute(H5Aopen(file.get(), "format", H5P_DEFAULT));
  const Hdf5Handle type(attribute ? H5Aget_type(attribute.get()) : -1);
  std::array<char, 64> value{};
  return type && H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 &&
         H5Tget_size(type.get()) < value.size() &&
         H5Aread(attribute.get(), type.get(), value.data()) >= 0 &&
         std::strcmp(value.data(), "chaski-tokens") == 0;
}

TokenFile::~TokenFile() {
  if (map_ != nullptr) ::munmap(map_, map_bytes_);
}

bool TokenFile::has_part(Part part) const {
  return parts_[static_cast<int>(part)] != nullptr;
}

const TokenPart& TokenFile::part(Part part) const {
  if (!has_part(part)) {
    throw std::invalid_argument(
        fmt::format("{}: has no {} part\nhint: make it with `chaski tokenize --split "
                    "validation=0.01`",
                    path_, name_of(part)));
  }
  return *parts_[static_cast<int>(part)];
}

}  // namespace chaski
