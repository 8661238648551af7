#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fmt/format.h>
#include <map>
#include <set>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/device/bf16.h"
#include "model/bounded_json.h"
#include "model/safetensors_format.h"

namespace chaski {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read without swapping bytes");

// A file that is open for reading; bytes are copied rather than mapped, so that a file that shrinks
// meanwhile is an error and no signal.
class InputFile {
 public:
  explicit InputFile(const std::string& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    struct stat status {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) fail("open");
    if (!S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      throw std::runtime_error(path + ": is no regular file");
    }
    bytes_ = static_cast<std::uint64_t>(status.st_size);
  }
  ~InputFile() { ::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::uint64_t bytes() const { return bytes_; }

  void read(std::uint64_t offset, void* destination, std::uint64_t bytes) const {
    for (std::uint64_t done = 0; done < bytes;) {
      const std::size_t piece = std::min<std::uint64_t>(bytes - done, std::uint64_t{64} << 20);
      const ssize_t count = ::pread(descriptor_, static_cast<char*>(destination) + done, piece,
                                    static_cast<off_t>(offset + done));
      if (count == 0) throw std::runtime_error(path_ + ": ends early");
      if (count > 0) done += static_cast<std::uint64_t>(count);
      if (count < 0 && errno != EINTR) fail("read");
    }
  }

 private:
  [[noreturn]] void fail(const char* operation) const {
    throw std::runtime_error(
        fmt::format("{}: cannot {}: {}", path_, operation, std::strerror(errno)));
  }

  std::string path_;
  int descriptor_;
  std::uint64_t bytes_ = 0;
};

std::string read_header(const InputFile& file, const std::string& path) {
  std::uint64_t size = 0;
  if (file.bytes() < sizeof(size)) throw std::runtime_error(path + ": is no safetensors file");
  file.read(0, &size, sizeof(size));
  if (size > kMaxSafetensorsHeader || size > file.bytes() - sizeof(size))
    throw std::runtime_error(
        fmt::format("{}: is no safetensors file, or truncated (header of {} bytes)", path, size));
  std::string header(size, '\0');
  file.read(sizeof(size), header.data(), size);
  return header;
}

// The shard of each tensor, from model.safetensors.index.json.
std::map<std::string, std::string> read_index(const std::string& directory) {
  const std::string path = directory + "/" + kSafetensorsIndex;
  const InputFile file(path);
  if (file.bytes() > kMaxSafetensorsHeader) throw std::runtime_error(path + ": is too large");
  std::string text(file.bytes(), '\0');
  file.read(0, text.data(), text.size());
  const auto json = parse_bounded_json(text, path);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    throw std::runtime_error(path + ": has no weight_map");
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    if (!shard.is_string()) throw std::runtime_error(path + ": names a shard that is no string");
    const auto text_of_shard = shard.get<std::string>();
    // A shard lies beside its index: no other file can be named.
    if (text_of_shard.find('/') != std::string::npos || !text_of_shard.ends_with(".safetensors"))
      throw std::runtime_error(path + ": names a shard that is no .safetensors file beside it");
    shards[name] = text_of_shard;
  }
  return shards;
}

float float_from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

template <typename Convert>
void read_converted(const InputFile& file, const SafetensorsEntry& entry, float* destination,
                    Convert convert) {
  constexpr std::uint64_t kPiece = 1U << 20;
  std::vector<std::uint16_t> piece(std::min<std::uint64_t>(kPiece, entry.bytes / 2));
  const std::uint64_t count = entry.bytes / 2;
  for (std::uint64_t done = 0; done < count; done += piece.size()) {
    const std::uint64_t now = std::min<std::uint64_t>(piece.size(), count - done);
    file.read(entry.offset + 2 * done, piece.data(), 2 * now);
    std::transform(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(now),
                   destination + done, convert);
  }
}

}  // namespace

std::int64_t SafetensorsEntry::num_elements() const {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  return count;
}

struct SafetensorsReader::Implementation {
  std::map<std::string, std::unique_ptr<InputFile>> files;  // by path
  std::vector<SafetensorsEntry> entries;

  void add_file(const std::string& path) {
    auto file = std::make_unique<InputFile>(path);
    const std::string header = read_header(*file, path);
    const std::uint64_t data_bytes = file->bytes() - sizeof(std::uint64_t) - header.size();
    for (SafetensorsEntry& entry : parse_safetensors_header(header, path, data_bytes))
      entries.push_back(std::move(entry));
    files[path] = std::move(file);
  }

  void add_shards(const std::string& directory) {
    const std::map<std::string, std::string> index = read_index(directory);
    std::set<std::string> names;
    for (const auto& [tensor, shard] : index) names.insert(shard);
    for (const std::string& name : names) add_file(directory + "/" + name);
    sort(directory);
    for (const auto& [tensor, shard] : index) {
      const SafetensorsEntry* entry = find(tensor);
      if (entry == nullptr || entry->file != directory + "/" + shard)
        throw std::runtime_error(
            fmt::format("{}/{}: holds no {}, which the index has there", directory, shard, tensor));
    }
  }

  void sort(const std::string& source) {
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    const auto twice =
        std::adjacent_find(entries.begin(), entries.end(),
                           [](const auto& a, const auto& b) { return a.name == b.name; });
    if (twice != entries.end())
      throw std::runtime_error(fmt::format("{}: holds {} more than once", source, twice->name));
  }

  const SafetensorsEntry* find(const std::string& name) const {
    const auto found = std::lower_bound(
        entries.begin(), entries.end(), name,
        [](const SafetensorsEntry& entry, const std::string& text) { return entry.name < text; });
    return found != entries.end() && found->name == name ? &*found : nullptr;
  }
};

SafetensorsReader::SafetensorsReader(const std::string& path)
    : implementation_(std::make_unique<Implementation>()) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::exists(path, ignored)) throw std::invalid_argument(path + ": does not exist");
  if (!fs::is_directory(path, ignored))
    implementation_->add_file(path);
  else if (fs::exists(path + "/" + kSafetensorsFile, ignored))
    implementation_->add_file(path + "/" + kSafetensorsFile);
  else if (fs::exists(path + "/" + kSafetensorsIndex, ignored))
    implementation_->add_shards(path);
  else
    throw std::invalid_argument(
        fmt::format("{}: holds neither {} nor {}", path, kSafetensorsFile, kSafetensorsIndex));
  implementation_->sort(path);
}

SafetensorsReader::~SafetensorsReader() = default;

const std::vector<SafetensorsEntry>& SafetensorsReader::entries() const {
  return implementation_->entries;
}

const SafetensorsEntry* SafetensorsReader::find(const std::string& name) const {
  return implementation_->find(name);
}

void SafetensorsReader::read_f32(const SafetensorsEntry& entry, float* destination) const {
  const InputFile& file = *implementation_->files.at(entry.file);
  if (entry.dtype == "F32")
    file.read(entry.offset, destination, entry.bytes);
  else if (entry.dtype == "BF16")
    read_converted(file, entry, destination, float_from_bf16);
  else if (entry.dtype == "F16")
    read_converted(file, entry, destination, float_from_f16);
  else
    throw std::runtime_error(fmt::format("{}: {} has dtype {}; F32, BF16 and F16 can be read",
                                         entry.file, entry.name, entry.dtype));
}

}  // namespace chaski
