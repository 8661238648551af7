#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fault/checkpoint/file_system.h"
#include "fault/checkpoint/hdf5_driver.h"
#include "fault/checkpoint/metadata.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/writer.h"

namespace chaski {

// A checkpoint's HDF5 file: one a pipeline stage. docs/formats.md describes it.
inline constexpr std::int64_t kShardFormatVersion = 1;
inline constexpr int kMaxShards = 9999;
std::string shard_file_name(int shard, int num_shards);  // "shard-00000-of-00001.h5"
bool is_shard_file_name(const std::string& name);

// A finished shard, as the completion marker lists it.
struct ShardInfo {
  std::string file;  // its name in the checkpoint directory
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;  // XXH3-64 of the whole file
};

// Writes and syncs a shard in `directory`. Throws FileError, or std::runtime_error from HDF5.
ShardInfo write_shard(FileSystem& files, const std::string& directory, int shard, int num_shards,
                      const CheckpointMetadata& metadata, const std::vector<TensorRecord>& tensors);

struct ShardContents {
  int shard = 0;
  int num_shards = 1;
  CheckpointMetadata metadata;
  std::vector<StoredTensor> tensors;
};
// Reads everything but the tensors' elements. Throws std::runtime_error naming the damage.
ShardContents read_shard(FileSystem& files, const std::string& path);

// XXH3-64 of a file's bytes, read in pieces.
std::uint64_t checksum_of_file(File& file, std::uint64_t bytes);

// Attributes of the root group, but for the tokenizer's model, which is a dataset.
void write_shard_metadata(const Hdf5File& file, int shard, int num_shards,
                          const CheckpointMetadata& metadata);
void read_shard_metadata(const Hdf5File& file, ShardContents& contents);

// Attributes of a dataset or group. Readers throw std::runtime_error naming the file and attribute.
void write_attribute(const Hdf5File& file, hid_t object, const char* name, std::int64_t value);
void write_attribute(const Hdf5File& file, hid_t object, const char* name,
                     const std::string& value);
std::int64_t read_integer_attribute(const Hdf5File& file, hid_t object, const char* name);
std::string read_string_attribute(const Hdf5File& file, hid_t object, const char* name);

}  // namespace chaski
