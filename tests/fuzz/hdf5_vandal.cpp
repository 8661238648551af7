#include "tests/fuzz/hdf5_vandal.h"

#define H5_USE_110_API
#include <algorithm>
#include <hdf5.h>
#include <stdexcept>

namespace chaski {
namespace {

static_assert(sizeof(hid_t) == sizeof(std::int64_t));
static_assert(sizeof(hsize_t) == sizeof(unsigned long long));

herr_t remember_name(hid_t, const char* name, const H5L_info_t*, void* names) {
  static_cast<std::vector<std::string>*>(names)->emplace_back(name);
  return 0;
}

std::vector<std::string> names_in(hid_t file) {
  std::vector<std::string> names;
  H5Lvisit(file, H5_INDEX_NAME, H5_ITER_INC, remember_name, &names);
  return names;
}

std::string attribute_name(hid_t object, std::uint64_t index) {
  char name[256] = {};
  H5Aget_name_by_idx(object, ".", H5_INDEX_NAME, H5_ITER_INC, index, name, sizeof(name),
                     H5P_DEFAULT);
  return name;
}

std::uint64_t count_attributes(hid_t object) {
  H5O_info_t info{};
  return H5Oget_info(object, &info) < 0 ? 0 : info.num_attrs;
}

// Most readers want a dataset's attributes before they look further.
void copy_attributes(hid_t from, hid_t to) {
  for (std::uint64_t i = 0; i < count_attributes(from); ++i) {
    const std::string name = attribute_name(from, i);
    const hid_t old = H5Aopen(from, name.c_str(), H5P_DEFAULT);
    const hid_t type = H5Aget_type(old);
    const hid_t space = H5Aget_space(old);
    const hid_t copy = H5Acreate2(to, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (H5Tis_variable_str(type) <= 0) {
      const auto points =
          static_cast<std::size_t>(std::max<hssize_t>(1, H5Sget_simple_extent_npoints(space)));
      std::vector<char> value(H5Tget_size(type) * points);
      if (H5Aread(old, type, value.data()) >= 0) H5Awrite(copy, type, value.data());
    }
    H5Aclose(copy);
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(old);
  }
}

}  // namespace

void Hdf5Vandal::change(const std::string& path) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  if (file < 0) throw std::logic_error(path + ": the original cannot be opened");
  for (std::uint64_t count = 1 + below(3); count > 0; --count) {
    const std::vector<std::string> names = names_in(file);
    if (names.empty()) break;
    const std::string& name = names[below(names.size())];
    switch (below(4)) {
      case 0:
        change_attribute(file);
        break;
      case 1: {
        const hid_t object = H5Oopen(file, name.c_str(), H5P_DEFAULT);
        if (object >= 0) change_attribute(object);
        H5Oclose(object);
        break;
      }
      case 2:
        replace_dataset(file, name);
        break;
      default:
        change_link(file, name);
    }
  }
  H5Fclose(file);
}

std::int64_t Hdf5Vandal::extreme_number() {
  constexpr std::int64_t kNumbers[] = {
      0,         1,         2,         3,          -1,           255,
      65535,     65537,     1LL << 20, 0x7fffffff, 0x80000000LL, 1LL << 40,
      1LL << 62, INT64_MAX, INT64_MIN};
  return kNumbers[below(std::size(kNumbers))];
}

void Hdf5Vandal::change_attribute(Id object) {
  const std::uint64_t count = count_attributes(object);
  if (count == 0) return;
  const std::string name = attribute_name(object, below(count));
  if (below(6) == 0) {
    H5Adelete(object, name.c_str());
  } else if (below(3) == 0) {
    replace_attribute(object, name);
  } else {
    const hid_t attribute = H5Aopen(object, name.c_str(), H5P_DEFAULT);
    if (attribute >= 0) overwrite_attribute(attribute);
    H5Aclose(attribute);
  }
}

void Hdf5Vandal::overwrite_attribute(Id attribute) {
  const hid_t type = H5Aget_type(attribute);
  const hid_t space = H5Aget_space(attribute);
  // An earlier change may have made it an array.
  const auto points =
      static_cast<std::size_t>(std::max<hssize_t>(1, H5Sget_simple_extent_npoints(space)));
  H5Sclose(space);
  if (H5Tget_class(type) == H5T_INTEGER) {
    const std::vector<std::int64_t> numbers(points, extreme_number());
    H5Awrite(attribute, H5T_NATIVE_INT64, numbers.data());
  } else if (H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0) {
    std::vector<char> value(points * H5Tget_size(type));
    H5Aread(attribute, type, value.data());
    const std::size_t size = value.size();
    value = bytes_.mutate(value);
    value.resize(size);
    H5Awrite(attribute, type, value.data());
  }
  H5Tclose(type);
}

void Hdf5Vandal::replace_attribute(Id object, const std::string& name) {
  H5Adelete(object, name.c_str());
  const std::uint64_t kind = below(5);
  hid_t type = H5Tcopy(kind == 0 ? H5T_IEEE_F64LE : kind == 1 ? H5T_STD_I8LE : H5T_C_S1);
  if (kind == 2) H5Tset_size(type, H5T_VARIABLE);
  if (kind >= 3) H5Tset_size(type, kind == 3 ? 30000 : 1);
  const hsize_t three = 3;
  const hid_t space = below(3) == 0   ? H5Screate(H5S_NULL)
                      : below(2) == 0 ? H5Screate_simple(1, &three, nullptr)
                                      : H5Screate(H5S_SCALAR);
  const hid_t attribute = H5Acreate2(object, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT);
  const std::string text(100000, 'x');
  const char* const strings[] = {text.c_str(), text.c_str(), text.c_str()};
  if (kind == 2)
    H5Awrite(attribute, type, strings);
  else
    H5Awrite(attribute, type, text.data());
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
}

Hdf5Vandal::Id Hdf5Vandal::make_layout(int rank, const unsigned long long* dims) {
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  std::vector<hsize_t> chunk(static_cast<std::size_t>(std::max(rank, 1)));
  for (int i = 0; i < rank; ++i)
    chunk[static_cast<std::size_t>(i)] = std::clamp(dims[i], 1ULL, 4ULL);
  switch (below(6)) {
    case 0:
      if (rank > 0) H5Pset_chunk(properties, rank, chunk.data());
      if (below(2) == 0) H5Pset_deflate(properties, 1);
      break;
    case 1:
      H5Pset_layout(properties, H5D_COMPACT);
      break;
    case 2:
      H5Pset_external(properties, "/etc/passwd", 0, H5F_UNLIMITED);
      break;
    default:
      break;  // contiguous, perhaps without any space allocated
  }
  if (below(2) == 0) H5Pset_alloc_time(properties, H5D_ALLOC_TIME_LATE);
  return properties;
}

void Hdf5Vandal::replace_dataset(Id file, const std::string& name) {
  const hid_t old = H5Dopen2(file, name.c_str(), H5P_DEFAULT);
  if (old < 0) return;
  const hid_t space_before = H5Dget_space(old);
  hsize_t dims[8] = {};
  int rank = H5Sget_simple_extent_ndims(space_before);
  if (rank > 0 && rank <= 8) H5Sget_simple_extent_dims(space_before, dims, nullptr);
  H5Sclose(space_before);
  if (below(2) == 0) rank = static_cast<int>(below(6));
  for (int i = 0; i < rank; ++i)
    if (below(3) == 0) dims[i] = static_cast<hsize_t>(extreme_number()) & 0x7fffffffffffffffULL;
  const hid_t types[] = {H5T_STD_U8LE,   H5T_STD_U16LE,  H5T_STD_I32LE, H5T_STD_U64LE,
                         H5T_IEEE_F32LE, H5T_IEEE_F32BE, H5T_IEEE_F64LE};
  const hid_t type = below(2) == 0 ? H5Dget_type(old) : H5Tcopy(types[below(std::size(types))]);
  // Space is not allocated for what would not fit on any disk.
  unsigned __int128 elements = 1;
  for (int i = 0; i < rank; ++i) elements *= dims[i];
  const hid_t properties =
      elements < (1 << 16) ? make_layout(rank, dims) : H5Pcreate(H5P_DATASET_CREATE);
  if (elements >= (1 << 16)) H5Pset_alloc_time(properties, H5D_ALLOC_TIME_LATE);
  const hid_t space = H5Screate_simple(rank, dims, nullptr);
  H5Ldelete(file, name.c_str(), H5P_DEFAULT);
  const hid_t made =
      H5Dcreate2(file, name.c_str(), type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  if (made >= 0) copy_attributes(old, made);
  H5Dclose(made);
  H5Sclose(space);
  H5Pclose(properties);
  H5Tclose(type);
  H5Dclose(old);
}

void Hdf5Vandal::change_link(Id file, const std::string& name) {
  const std::size_t slash = name.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : name.substr(0, slash);
  switch (below(7)) {
    case 0:
      H5Ldelete(file, name.c_str(), H5P_DEFAULT);
      break;
    case 1:
      H5Ldelete(file, name.c_str(), H5P_DEFAULT);
      H5Lcreate_soft(below(2) == 0 ? "/" : "nowhere", file, name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
      break;
    case 2:
      H5Ldelete(file, name.c_str(), H5P_DEFAULT);
      H5Lcreate_external("/etc/passwd", "/", file, name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
      break;
    case 3:
      H5Lmove(file, name.c_str(), file, (name + "\nx").c_str(), H5P_DEFAULT, H5P_DEFAULT);
      break;
    case 4:
      // A group that holds itself, several times: a walk through it must end.
      for (std::uint64_t i = 0; i < 1 + below(12); ++i)
        H5Lcreate_hard(file, parent.c_str(), file, (parent + "/round" + std::to_string(i)).c_str(),
                       H5P_DEFAULT, H5P_DEFAULT);
      break;
    case 5:
      H5Lcreate_hard(file, name.c_str(), file, (name + ".twin").c_str(), H5P_DEFAULT, H5P_DEFAULT);
      break;
    default: {
      std::string deep = parent;
      for (std::uint64_t depth = below(30); depth > 0; --depth) {
        deep += "/deep";
        const hid_t group = H5Gcreate2(file, deep.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        H5Gclose(group);
      }
    }
  }
}

}  // namespace chaski
