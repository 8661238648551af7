#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <unistd.h>

#include "kernels/device/bf16.h"
#include "model/safetensors_format.h"

namespace chaski {
namespace {

// A file that appears under its name only when it is complete and durable.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path) : path_(path), temporary_(path + ".tmp") {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail("create");
  }
  ~OutputFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, std::size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t count = ::write(descriptor_, at, std::min(bytes, std::size_t{64} << 20));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("write");
      at += count;
      bytes -= static_cast<std::size_t>(count);
    }
  }

  void finish() {
    if (::fsync(descriptor_) != 0) fail("sync");
    const int descriptor = std::exchange(descriptor_, -1);
    if (::close(descriptor) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) fail("write");
  }

 private:
  [[noreturn]] void fail(const char* operation) const {
    throw std::runtime_error(
        fmt::format("{}: cannot {}: {}", path_, operation, std::strerror(errno)));
  }

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
};

std::uint64_t stored_bytes(const SafetensorsSource& tensor, const SafetensorsOptions& options) {
  return static_cast<std::uint64_t>(tensor.shape.num_elements()) * (options.bf16 ? 2 : 4);
}

std::string make_header(const std::vector<const SafetensorsSource*>& tensors,
                        const SafetensorsOptions& options) {
  nlohmann::ordered_json json;
  json["__metadata__"] = {{"format", "pt"}};  // transformers asks for it
  std::uint64_t offset = 0;
  for (const SafetensorsSource* tensor : tensors) {
    auto shape = nlohmann::ordered_json::array();
    for (int i = 0; i < tensor->shape.rank(); ++i) shape.push_back(tensor->shape[i]);
    const std::uint64_t end = offset + stored_bytes(*tensor, options);
    json[tensor->name] = {{"dtype", options.bf16 ? "BF16" : "F32"},
                          {"shape", shape},
                          {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string header = json.dump();
  header.append((8 - header.size() % 8) % 8, ' ');  // data begin aligned
  return header;
}

void write_file(const std::string& path, const std::vector<const SafetensorsSource*>& tensors,
                const SafetensorsOptions& options) {
  OutputFile file(path);
  const std::string header = make_header(tensors, options);
  const std::uint64_t size = header.size();
  file.write(&size, sizeof(size));
  file.write(header.data(), header.size());
  std::vector<float> values;
  std::vector<std::uint16_t> rounded;
  for (const SafetensorsSource* tensor : tensors) {
    values.resize(static_cast<std::size_t>(tensor->shape.num_elements()));
    tensor->read(values.data());
    if (!options.bf16) {
      file.write(values.data(), values.size() * sizeof(float));
      continue;
    }
    rounded.resize(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(), bf16_from_float);
    file.write(rounded.data(), rounded.size() * sizeof(std::uint16_t));
  }
  file.finish();
}

using Shards = std::vector<std::vector<const SafetensorsSource*>>;

// In the order given; a shard ends before the tensor that would make it too large.
Shards split(const std::vector<SafetensorsSource>& tensors, const SafetensorsOptions& options) {
  Shards shards(1);
  std::uint64_t bytes = 0;
  for (const SafetensorsSource& tensor : tensors) {
    const std::uint64_t more = stored_bytes(tensor, options);
    if (options.max_shard_bytes > 0 && !shards.back().empty() &&
        bytes + more > options.max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(&tensor);
    bytes += more;
  }
  return shards;
}

void write_index(const std::string& directory, const Shards& shards,
                 const std::vector<std::string>& names, const SafetensorsOptions& options) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i)
    for (const SafetensorsSource* tensor : shards[i]) {
      map[tensor->name] = names[i];
      total += stored_bytes(*tensor, options);
    }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  const std::string text = index.dump(2) + "\n";
  OutputFile file(directory + "/" + kSafetensorsIndex);
  file.write(text.data(), text.size());
  file.finish();
}

void sync_directory(const std::string& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

// What an export of another kind left here would be read instead of, or beside, the new one.
void remove_other_kind(const std::string& directory, const Shards& shards) {
  const char* other = shards.size() > 1 ? kSafetensorsFile : kSafetensorsIndex;
  ::unlink((directory + "/" + other).c_str());
}

}  // namespace

std::vector<std::string> write_safetensors(const std::string& directory,
                                           const std::vector<SafetensorsSource>& tensors,
                                           const SafetensorsOptions& options) {
  const Shards shards = split(tensors, options);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    names.push_back(shards.size() == 1
                        ? std::string(kSafetensorsFile)
                        : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    write_file(directory + "/" + names.back(), shards[i], options);
  }
  if (shards.size() > 1) {
    write_index(directory, shards, names, options);
    names.emplace_back(kSafetensorsIndex);
  }
  remove_other_kind(directory, shards);
  sync_directory(directory);
  return names;
}

}  // namespace chaski
