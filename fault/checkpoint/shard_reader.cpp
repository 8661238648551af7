#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <fmt/format.h>
#include <xxhash.h>

#include "fault/checkpoint/shard.h"

namespace chaski {
namespace {

constexpr int kMaxDepth = 8;  // of groups in groups
constexpr std::size_t kMaxTensors = 1'000'000;
constexpr std::size_t kMaxNameBytes = 1024;

[[noreturn]] void fail(const Hdf5File& file, std::string name, const std::string& reason) {
  file.check();
  // A damaged name may hold anything; an error is one line.
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return c < ' '; }, '?');
  throw std::runtime_error(fmt::format("{}: /{}: {}", file.path(), name, reason));
}

Shape make_shape(const std::array<hsize_t, Shape::kMaxRank>& dims, int rank) {
  const auto d = [&](int i) { return static_cast<std::int64_t>(dims[i]); };
  switch (rank) {
    case 0:
      return Shape{};
    case 1:
      return Shape{d(0)};
    case 2:
      return Shape{d(0), d(1)};
    case 3:
      return Shape{d(0), d(1), d(2)};
    default:
      return Shape{d(0), d(1), d(2), d(3)};
  }
}

DType parse_dtype(const Hdf5File& file, const std::string& name, const std::string& text) {
  if (const std::optional<DType> dtype = dtype_named(text)) return *dtype;
  fail(file, name, fmt::format("has the unknown dtype '{}'", text));
}

std::uint64_t parse_checksum(const Hdf5File& file, const std::string& name,
                             const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || text.size() != 16)
    fail(file, name, "has a malformed checksum");
  return value;
}

// The shape, checked against overflow and the size of the file.
Shape read_shape(const Hdf5File& file, const std::string& name, hid_t dataset, DType dtype) {
  const Hdf5Handle space(H5Dget_space(dataset));
  const int rank = space ? H5Sget_simple_extent_ndims(space.get()) : -1;
  if (rank < 0 || rank > Shape::kMaxRank) fail(file, name, "has an impossible shape");
  std::array<hsize_t, Shape::kMaxRank> dims{};
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  const std::uint64_t limit = file.file().size() / static_cast<std::uint64_t>(size_of(dtype));
  std::uint64_t elements = 1;
  for (int i = 0; i < rank; ++i) {
    if (dims[i] > limit || (dims[i] != 0 && elements > limit / dims[i]))
      fail(file, name, "is larger than the file");
    elements *= dims[i];
  }
  return make_shape(dims, rank);
}

StoredTensor read_dataset(const Hdf5File& file, const std::string& name) {
  const Hdf5Handle dataset(H5Dopen2(file.id(), name.c_str(), H5P_DEFAULT));
  if (!dataset) fail(file, name, "cannot be opened");
  StoredTensor tensor;
  tensor.name = name;
  tensor.dtype = parse_dtype(file, name, read_string_attribute(file, dataset.get(), "dtype"));
  tensor.checksum =
      parse_checksum(file, name, read_string_attribute(file, dataset.get(), "xxh3_64"));
  tensor.shape = read_shape(file, name, dataset.get(), tensor.dtype);
  tensor.bytes = static_cast<std::uint64_t>(tensor.shape.num_elements() * size_of(tensor.dtype));
  // Its bytes are read without HDF5: no filters, no other files, no other layout may be in the way.
  const Hdf5Handle properties(H5Dget_create_plist(dataset.get()));
  const Hdf5Handle type(H5Dget_type(dataset.get()));
  if (!properties || !type || H5Pget_layout(properties.get()) != H5D_CONTIGUOUS ||
      H5Pget_nfilters(properties.get()) != 0 || H5Pget_external_count(properties.get()) != 0 ||
      static_cast<std::int64_t>(H5Tget_size(type.get())) != size_of(tensor.dtype))
    fail(file, name, "is not stored as plain contiguous elements");
  if (tensor.bytes == 0) return tensor;
  tensor.offset = H5Dget_offset(dataset.get());
  const std::uint64_t size = file.file().size();
  if (tensor.offset > size || tensor.bytes > size - tensor.offset)
    fail(file, name, "reaches beyond the end of the file");
  return tensor;
}

// What a group's links are called; not usable when one is no plain link.
struct LinkNames {
  std::vector<std::string> names;
  bool usable = true;
};

// Called by HDF5 for each link: must not throw.
herr_t add_link(hid_t, const char* name, const H5L_info_t* info, void* data) noexcept {
  auto& links = *static_cast<LinkNames*>(data);
  const std::size_t length = std::strlen(name);
  links.usable = info->type == H5L_TYPE_HARD && length > 0 && length <= kMaxNameBytes &&
                 links.names.size() < kMaxTensors;
  if (links.usable) links.names.emplace_back(name, length);
  return links.usable ? 0 : 1;
}

// Sorted. They are asked for in HDF5's native order: for any other it makes a table of them first,
// and HDF5 1.10, finding the group damaged, frees pointers of that table which it has never set.
std::vector<std::string> links_of(const Hdf5File& file, hid_t group,
                                  const std::string& group_name) {
  LinkNames links;
  hsize_t position = 0;
  const herr_t result =
      H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, &position, add_link, &links);
  if (!links.usable) fail(file, group_name, "holds something else than plain links");
  if (result < 0) fail(file, group_name, "cannot be read");
  std::sort(links.names.begin(), links.names.end());
  return links.names;
}

void collect(const Hdf5File& file, const std::string& group_name, int depth,
             std::vector<StoredTensor>& tensors) {
  if (depth > kMaxDepth) fail(file, group_name, "groups are nested too deeply");
  const Hdf5Handle group(H5Gopen2(file.id(), group_name.c_str(), H5P_DEFAULT));
  if (!group) fail(file, group_name, "cannot be opened");
  for (const std::string& link : links_of(file, group.get(), group_name)) {
    const std::string name = group_name + "/" + link;
    H5O_info_t object{};
    if (H5Oget_info_by_name(group.get(), link.c_str(), &object, H5P_DEFAULT) < 0)
      fail(file, name, "cannot be opened");
    // Else groups could hold each other, and a walk through them take for ever.
    if (object.rc != 1) fail(file, name, "is linked more than once");
    if (object.type == H5O_TYPE_GROUP)
      collect(file, name, depth + 1, tensors);
    else if (object.type == H5O_TYPE_DATASET)
      tensors.push_back(read_dataset(file, name));
    if (tensors.size() > kMaxTensors) fail(file, group_name, "holds too many tensors");
  }
}

bool has_group(const Hdf5File& file, const char* name) {
  return H5Lexists(file.id(), name, H5P_DEFAULT) > 0;
}

std::string read_tokenizer(const Hdf5File& file) {
  if (!has_group(file, "tokenizer")) return "";
  std::vector<StoredTensor> found;
  collect(file, "tokenizer", 1, found);
  if (found.size() != 1 || found[0].name != "tokenizer/model" || found[0].dtype != DType::u8)
    fail(file, "tokenizer", "holds something else than a model");
  std::string model(found[0].bytes, '\0');
  if (file.file().read_at(found[0].offset, model.data(), model.size()) != model.size() ||
      XXH3_64bits(model.data(), model.size()) != found[0].checksum)
    fail(file, "tokenizer/model", "is damaged (checksum)");
  return model;
}

}  // namespace

ShardContents read_shard(FileSystem& files, const std::string& path) {
  const Hdf5File file = Hdf5File::open(files.open(path), path);
  ShardContents contents;
  read_shard_metadata(file, contents);
  contents.metadata.tokenizer_model = read_tokenizer(file);
  for (const char* group : {"weights", "optimizer"})
    if (has_group(file, group)) collect(file, group, 1, contents.tensors);
  for (StoredTensor& tensor : contents.tensors) tensor.shard = contents.shard;
  return contents;
}

}  // namespace chaski
