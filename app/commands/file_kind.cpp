#include "app/commands/file_kind.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <stdexcept>
#include <string_view>

#include "data/hdf5_handle.h"
#include "fault/checkpoint/file_system.h"

namespace chaski {
namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

// A token file's name for itself stands near its beginning, a shard's near its end.
constexpr std::size_t kEndBytes = 65536;
constexpr std::string_view kHdf5Signature = "\x89HDF\r\n\x1a\n"sv;

struct Signature {
  std::string_view bytes;  // at the beginning
  const char* looks_like;
};
constexpr Signature kSignatures[] = {
    {"\x1f\x8b"sv, "gzip-compressed data"},
    {"\x28\xb5\x2f\xfd"sv, "zstd-compressed data"},
    {"PK\x03\x04"sv, "a zip archive (or a PyTorch checkpoint)"},
    {"\x93NUMPY"sv, "a NumPy array"},
    {"\x7f"
     "ELF"sv,
     "a program"},
    {"\x0a\x0e\x0a\x05<unk>"sv, "a SentencePiece model"},
    {"GGUF"sv, "a GGUF model"},
};

bool is_shard_name(const std::string& name) {
  return name.starts_with("shard-") && name.ends_with(".h5");
}

bool is_text(std::string_view head) {
  return std::none_of(head.begin(), head.end(), [](unsigned char byte) {
    return byte < ' ' && byte != '\n' && byte != '\r' && byte != '\t' && byte != '\f';
  });
}

// Eight bytes of a length, then that many of JSON.
bool is_safetensors(std::string_view head, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  if (head.size() < sizeof(length) + 2 || head[sizeof(length)] != '{') return false;
  std::memcpy(&length, head.data(), sizeof(length));
  return length > 1 && length <= file_bytes - sizeof(length) && head[sizeof(length) + 1] == '"';
}

// False for damage that hides what the file says of itself.
bool is_of_another_program(const std::string& path) {
  const QuietHdf5 quiet;
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_file_locking(access.get(), false, true);
  const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()));
  return file && H5Aexists(file.get(), "format") >= 0;
}

FileGuess guess_hdf5(const std::string& path) {
  if (is_of_another_program(path))
    return {FileKind::other, "an HDF5 file of another program", false};
  return {FileKind::other, "a damaged HDF5 file, once perhaps a token file or a checkpoint's shard",
          true};
}

// The first and the last bytes.
struct Ends {
  std::string head;
  std::string tail;
  std::uint64_t file_bytes = 0;

  bool hold(const char* words) const {
    return head.find(words) != std::string::npos || tail.find(words) != std::string::npos;
  }
};

Ends read_ends(const std::string& path) {
  const auto file = posix_file_system().open(path);
  Ends ends{std::string(kEndBytes, '\0'), std::string(kEndBytes, '\0'), file->size()};
  ends.head.resize(file->read_at(0, ends.head.data(), kEndBytes));
  const std::uint64_t begin = ends.file_bytes - std::min<std::uint64_t>(ends.file_bytes, kEndBytes);
  ends.tail.resize(file->read_at(begin, ends.tail.data(), kEndBytes));
  return ends;
}

FileGuess guess_by_contents(const std::string& path) {
  const Ends ends = read_ends(path);
  if (ends.head.empty()) return {FileKind::other, "an empty file", false};
  if (is_text(ends.head)) return {FileKind::other, ends.head[0] == '{' ? "JSON" : "text", false};
  if (ends.hold("chaski-tokens")) return {FileKind::token_file, "a token file", false};
  if (ends.hold("chaski checkpoint")) return {FileKind::checkpoint, "a checkpoint's shard", false};
  if (ends.head.starts_with(kHdf5Signature)) return guess_hdf5(path);
  if (is_safetensors(ends.head, ends.file_bytes))
    return {FileKind::safetensors, "safetensors", false};
  for (const Signature& signature : kSignatures)
    if (ends.head.starts_with(signature.bytes))
      return {FileKind::other, signature.looks_like, false};
  return {FileKind::other, "binary data of an unknown kind", false};
}

FileGuess guess_file(const std::string& path) {
  const std::string name = fs::path(path).filename().string();
  if (!fs::is_regular_file(path)) return {FileKind::other, "a device or a pipe", false};
  FileGuess guess = guess_by_contents(path);
  if (guess.kind != FileKind::other) return guess;
  if (is_shard_name(name)) return {FileKind::checkpoint, "a checkpoint's shard", false};
  if (name == "COMPLETE" || name == "LATEST")
    return {FileKind::checkpoint, "a checkpoint's " + name, false};
  if (name.ends_with(".safetensors")) return {FileKind::safetensors, "safetensors", false};
  return guess;
}

FileGuess guess_directory(const std::string& path) {
  const std::vector<std::string> names = posix_file_system().list(path);
  const auto has = [&](auto matches) { return std::any_of(names.begin(), names.end(), matches); };
  const auto has_name = [&](const char* wanted) {
    return has([&](const std::string& name) { return name == wanted; });
  };
  if (has_name("model.safetensors") || has_name("model.safetensors.index.json"))
    return {FileKind::safetensors, "a Hugging Face model", false};
  if (has_name("COMPLETE") || has(is_shard_name))
    return {FileKind::checkpoint, "a checkpoint", false};
  const auto is_step = [](const std::string& name) { return name.starts_with("step-"); };
  if (has_name("checkpoints") || has(is_step) ||
      is_step(fs::path(path).lexically_normal().filename().string()))
    return {FileKind::run, "a run's directory", false};
  if (names.empty()) return {FileKind::other, "an empty directory", false};
  if (has_name("config.json"))
    return {FileKind::other, "a Hugging Face model without its model.safetensors", true};
  return {FileKind::other, "a directory without checkpoints", false};
}

}  // namespace

FileGuess guess_file_kind(const std::string& path) {
  const auto status = posix_file_system().status(path);
  if (!status) throw std::invalid_argument(path + ": does not exist");
  return status->is_directory ? guess_directory(path) : guess_file(path);
}

}  // namespace chaski
