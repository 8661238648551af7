#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "fault/checkpoint/shard.h"
#include "model/huggingface.h"

namespace chaski {
namespace {

// No text in a checkpoint comes near this; a damaged size must not become an allocation.
constexpr std::size_t kMaxAttributeBytes = std::size_t{64} << 20;
constexpr const char* kFormatName = "chaski checkpoint";

[[noreturn]] void fail(const Hdf5File& file, const char* name, const char* reason) {
  file.check();
  throw std::runtime_error(fmt::format("{}: attribute {}: {}", file.path(), name, reason));
}

Hdf5Handle string_type(std::size_t bytes) {
  Hdf5Handle type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), std::max<std::size_t>(bytes, 1));
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

void write_attribute(const Hdf5File& file, hid_t object, const char* name, hid_t file_type,
                     hid_t memory_type, const void* value) {
  const Hdf5Handle space(H5Screate(H5S_SCALAR));
  const Hdf5Handle attribute(
      H5Acreate2(object, name, file_type, space.get(), H5P_DEFAULT, H5P_DEFAULT));
  if (!attribute || H5Awrite(attribute.get(), memory_type, value) < 0)
    fail(file, name, "cannot be written");
}

// The attribute, when it is a scalar of the class; its size in bytes is left in `bytes`.
Hdf5Handle open_scalar(const Hdf5File& file, hid_t object, const char* name, H5T_class_t type_class,
                       std::size_t& bytes) {
  Hdf5Handle attribute(H5Aopen(object, name, H5P_DEFAULT));
  if (!attribute) fail(file, name, "is missing or damaged");
  const Hdf5Handle space(H5Aget_space(attribute.get()));
  const Hdf5Handle type(H5Aget_type(attribute.get()));
  if (!space || !type || H5Sget_simple_extent_npoints(space.get()) != 1 ||
      H5Tget_class(type.get()) != type_class || H5Tis_variable_str(type.get()) > 0)
    fail(file, name, "has an unexpected type");
  bytes = H5Tget_size(type.get());
  if (bytes == 0 || bytes > kMaxAttributeBytes) fail(file, name, "has an impossible size");
  return attribute;
}

std::string text_of(const std::map<std::string, std::string>& values) {
  return nlohmann::json(values).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::map<std::string, std::string> read_map(const Hdf5File& file, hid_t object, const char* name) {
  try {
    return nlohmann::json::parse(read_string_attribute(file, object, name))
        .get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception&) {
    fail(file, name, "is no JSON object of strings");
  }
}

}  // namespace

void write_attribute(const Hdf5File& file, hid_t object, const char* name, std::int64_t value) {
  write_attribute(file, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void write_attribute(const Hdf5File& file, hid_t object, const char* name,
                     const std::string& value) {
  const Hdf5Handle type = string_type(value.size());
  write_attribute(file, object, name, type.get(), type.get(), value.c_str());
}

std::int64_t read_integer_attribute(const Hdf5File& file, hid_t object, const char* name) {
  std::size_t bytes = 0;
  const Hdf5Handle attribute = open_scalar(file, object, name, H5T_INTEGER, bytes);
  std::int64_t value = 0;
  if (H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) fail(file, name, "cannot be read");
  return value;
}

std::string read_string_attribute(const Hdf5File& file, hid_t object, const char* name) {
  std::size_t bytes = 0;
  const Hdf5Handle attribute = open_scalar(file, object, name, H5T_STRING, bytes);
  if (bytes > file.file().size()) fail(file, name, "is larger than the file");
  const Hdf5Handle type = string_type(bytes);
  std::string value(bytes, '\0');
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) fail(file, name, "cannot be read");
  value.resize(value.find_last_not_of('\0') + 1);
  return value;
}

void write_shard_metadata(const Hdf5File& file, int shard, int num_shards,
                          const CheckpointMetadata& metadata) {
  const hid_t root = file.id();
  write_attribute(file, root, "format", std::string(kFormatName));
  write_attribute(file, root, "format_version", kShardFormatVersion);
  write_attribute(file, root, "shard", static_cast<std::int64_t>(shard));
  write_attribute(file, root, "num_shards", static_cast<std::int64_t>(num_shards));
  write_attribute(file, root, "step", metadata.step);
  write_attribute(file, root, "updates", metadata.updates);
  write_attribute(file, root, "seed", static_cast<std::int64_t>(metadata.seed));
  write_attribute(file, root, "tokens_seen", metadata.tokens_seen);
  write_attribute(file, root, "config", metadata.config_toml);
  write_attribute(file, root, "model_config", huggingface_config(metadata.model, {}));
  write_attribute(file, root, "optimizer", metadata.optimizer_name);
  write_attribute(file, root, "precision", text_of(metadata.precision));
  write_attribute(file, root, "tokenizer_fingerprint", metadata.tokenizer_fingerprint);
  write_attribute(file, root, "versions", text_of(metadata.versions));
  write_attribute(file, root, "replicas", metadata.replicas);
  write_attribute(file, root, "stages", metadata.stages);
  write_attribute(file, root, "threads", metadata.threads);
}

void read_shard_metadata(const Hdf5File& file, ShardContents& contents) {
  const hid_t root = file.id();
  if (read_string_attribute(file, root, "format") != kFormatName)
    fail(file, "format", "is not that of a Chaski checkpoint");
  const std::int64_t version = read_integer_attribute(file, root, "format_version");
  if (version != kShardFormatVersion)
    throw std::runtime_error(
        fmt::format("{}: has format version {}, this program reads version {}\n"
                    "hint: use the version of Chaski that wrote it",
                    file.path(), version, kShardFormatVersion));
  const std::int64_t shard = read_integer_attribute(file, root, "shard");
  const std::int64_t num_shards = read_integer_attribute(file, root, "num_shards");
  if (num_shards < 1 || num_shards > kMaxShards || shard < 0 || shard >= num_shards)
    fail(file, "shard", "is out of range");
  contents.shard = static_cast<int>(shard);
  contents.num_shards = static_cast<int>(num_shards);

  CheckpointMetadata& metadata = contents.metadata;
  metadata.step = read_integer_attribute(file, root, "step");
  // Once it was not written, and skipped steps were taken for updates.
  const bool has_updates = H5Aexists(root, "updates") > 0;
  metadata.updates = has_updates ? read_integer_attribute(file, root, "updates") : metadata.step;
  metadata.seed = static_cast<std::uint64_t>(read_integer_attribute(file, root, "seed"));
  metadata.tokens_seen = read_integer_attribute(file, root, "tokens_seen");
  if (metadata.step < 0 || metadata.tokens_seen < 0) fail(file, "step", "is negative");
  if (metadata.updates < 0 || metadata.updates > metadata.step)
    fail(file, "updates", "is not from 0 to step");
  metadata.config_toml = read_string_attribute(file, root, "config");
  metadata.model = parse_huggingface_config(read_string_attribute(file, root, "model_config"),
                                            file.path() + ": attribute model_config");
  metadata.optimizer_name = read_string_attribute(file, root, "optimizer");
  metadata.precision = read_map(file, root, "precision");
  metadata.tokenizer_fingerprint = read_string_attribute(file, root, "tokenizer_fingerprint");
  metadata.versions = read_map(file, root, "versions");
  metadata.replicas = read_integer_attribute(file, root, "replicas");
  metadata.stages = read_integer_attribute(file, root, "stages");
  metadata.threads = read_integer_attribute(file, root, "threads");
}

}  // namespace chaski
