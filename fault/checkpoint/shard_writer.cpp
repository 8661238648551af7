#include <algorithm>
#include <array>
#include <cstdio>
#include <fmt/format.h>
#include <memory>
#include <xxhash.h>

#include "fault/checkpoint/shard.h"

namespace chaski {
namespace {

using XxhState = std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)>;

XxhState new_checksum() {
  XxhState state(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(state.get());
  return state;
}

hid_t file_type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::bf16:
      return H5T_STD_U16LE;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::u8:
      return H5T_STD_U8LE;
    case DType::f64:
      return H5T_IEEE_F64LE;
    case DType::i64:
      return H5T_STD_I64LE;
  }
  return H5I_INVALID_HID;
}

Hdf5Handle dataspace_of(const Shape& shape) {
  std::array<hsize_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < shape.rank(); ++i) dims[i] = static_cast<hsize_t>(shape[i]);
  return shape.rank() == 0 ? Hdf5Handle(H5Screate(H5S_SCALAR))
                           : Hdf5Handle(H5Screate_simple(shape.rank(), dims.data(), nullptr));
}

// Contiguous, with its place in the file fixed at once, so that a reader can map or read it there.
Hdf5Handle contiguous_layout() {
  Hdf5Handle list(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_layout(list.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(list.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(list.get(), 0);
  return list;
}

// Makes the groups in "a/b/name" that do not exist yet.
void create_groups(const Hdf5File& file, const std::string& name) {
  const Hdf5Handle properties(H5Pcreate(H5P_GROUP_CREATE));
  H5Pset_obj_track_times(properties.get(), 0);  // equal contents give equal files
  for (std::size_t end = name.find('/'); end != std::string::npos; end = name.find('/', end + 1)) {
    const std::string group = name.substr(0, end);
    if (H5Lexists(file.id(), group.c_str(), H5P_DEFAULT) > 0) continue;
    const Hdf5Handle created(
        H5Gcreate2(file.id(), group.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT));
  }
}

[[noreturn]] void throw_unwritable(const Hdf5File& file, const std::string& name) {
  file.check();
  throw std::runtime_error(fmt::format("{}: the HDF5 library cannot write /{}", file.path(), name));
}

// Rows [first, first + count) of a dataset's first dimension, whose elements lie at `data`.
bool write_rows(hid_t dataset, hid_t type, const Shape& shape, std::int64_t first,
                std::int64_t count, const void* data) {
  if (shape.rank() == 0) return H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
  std::array<hsize_t, Shape::kMaxRank> start{static_cast<hsize_t>(first)};
  std::array<hsize_t, Shape::kMaxRank> extent{static_cast<hsize_t>(count)};
  for (int i = 1; i < shape.rank(); ++i) extent[i] = static_cast<hsize_t>(shape[i]);
  const Hdf5Handle memory(H5Screate_simple(shape.rank(), extent.data(), nullptr));
  const Hdf5Handle place(H5Dget_space(dataset));
  // The memory's type is the file's: no conversion, one write straight from the piece.
  return memory && place &&
         H5Sselect_hyperslab(place.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                             nullptr) >= 0 &&
         H5Dwrite(dataset, type, memory.get(), place.get(), H5P_DEFAULT, data) >= 0;
}

// Writes the elements in pieces of whole rows. Returns their XXH3-64.
std::uint64_t write_elements(const Hdf5File& file, hid_t dataset, const TensorRecord& tensor) {
  const XxhState state = new_checksum();
  const std::int64_t rows = tensor.shape.rank() == 0 ? 1 : tensor.shape[0];
  const std::int64_t bytes = tensor.shape.num_elements() * size_of(tensor.dtype);
  const std::int64_t row_bytes = rows == 0 ? 0 : bytes / rows;
  const std::int64_t step =
      std::max<std::int64_t>(1, kTensorPieceBytes / std::max<std::int64_t>(1, row_bytes));
  for (std::int64_t row = 0; row < rows && row_bytes > 0; row += step) {
    const std::int64_t count = std::min(step, rows - row);
    const void* data = tensor.read(row * row_bytes, count * row_bytes);
    XXH3_64bits_update(state.get(), data, static_cast<std::size_t>(count * row_bytes));
    if (!write_rows(dataset, file_type_of(tensor.dtype), tensor.shape, row, count, data))
      throw_unwritable(file, tensor.name);
  }
  return XXH3_64bits_digest(state.get());
}

void write_dataset(const Hdf5File& file, const TensorRecord& tensor) {
  create_groups(file, tensor.name);
  const Hdf5Handle space = dataspace_of(tensor.shape);
  const Hdf5Handle layout = contiguous_layout();
  const Hdf5Handle dataset(H5Dcreate2(file.id(), tensor.name.c_str(), file_type_of(tensor.dtype),
                                      space.get(), H5P_DEFAULT, layout.get(), H5P_DEFAULT));
  if (!dataset) throw_unwritable(file, tensor.name);
  const std::uint64_t checksum = write_elements(file, dataset.get(), tensor);
  write_attribute(file, dataset.get(), "dtype", std::string(name_of(tensor.dtype)));
  write_attribute(file, dataset.get(), "xxh3_64", fmt::format("{:016x}", checksum));
  file.check();
}

void write_contents(const Hdf5File& file, int shard, int num_shards,
                    const CheckpointMetadata& metadata, const std::vector<TensorRecord>& tensors) {
  write_shard_metadata(file, shard, num_shards, metadata);
  for (const TensorRecord& tensor : tensors) write_dataset(file, tensor);
  const std::string& model = metadata.tokenizer_model;
  if (!model.empty())
    write_dataset(file,
                  {"tokenizer/model", DType::u8, Shape{static_cast<std::int64_t>(model.size())},
                   [&](std::int64_t offset, std::int64_t) { return model.data() + offset; }});
}

}  // namespace

std::string shard_file_name(int shard, int num_shards) {
  return fmt::format("shard-{:05}-of-{:05}.h5", shard, num_shards);
}

bool is_shard_file_name(const std::string& name) {
  int shard = 0;
  int num_shards = 0;
  return name.size() < 32 &&
         std::sscanf(name.c_str(), "shard-%5d-of-%5d.h5", &shard, &num_shards) == 2 &&
         name == shard_file_name(shard, num_shards);
}

std::uint64_t checksum_of_file(File& file, std::uint64_t bytes) {
  const XxhState state = new_checksum();
  std::vector<char> piece(kFilePieceBytes);
  for (std::uint64_t offset = 0; offset < bytes;) {
    const std::size_t size = std::min<std::uint64_t>(piece.size(), bytes - offset);
    const std::size_t count = file.read_at(offset, piece.data(), size);
    if (count == 0) break;
    XXH3_64bits_update(state.get(), piece.data(), count);
    offset += count;
  }
  return XXH3_64bits_digest(state.get());
}

ShardInfo write_shard(FileSystem& files, const std::string& directory, int shard, int num_shards,
                      const CheckpointMetadata& metadata,
                      const std::vector<TensorRecord>& tensors) {
  ShardInfo info;
  info.file = shard_file_name(shard, num_shards);
  const std::string path = join_path(directory, info.file);
  Hdf5File hdf5 = Hdf5File::create(files.create(path), path);
  write_contents(hdf5, shard, num_shards, metadata, tensors);
  hdf5.finish();
  File& file = hdf5.file();
  file.sync();
  // Read back, because HDF5 does not write from front to back.
  info.bytes = file.size();
  info.checksum = checksum_of_file(file, info.bytes);
  file.close();
  return info;
}

}  // namespace chaski
