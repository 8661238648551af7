#include "fault/checkpoint/hdf5_driver.h"

#include <cstring>
#include <fmt/format.h>
#include <mutex>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

namespace chaski {
namespace {

// What HDF5 hands back to the driver's functions: its own part first.
struct DriverFile {
  H5FD_t base;
  Hdf5File::State* state;
  haddr_t end_of_allocation;
  haddr_t end_of_file;
};

// The access property list's driver information.
struct DriverInfo {
  Hdf5File::State* state;
};

DriverFile* driver_file(H5FD_t* file) {
  return reinterpret_cast<DriverFile*>(file);
}
const DriverFile* driver_file(const H5FD_t* file) {
  return reinterpret_cast<const DriverFile*>(file);
}

// Runs `action`, keeping the first exception for Hdf5File::check(). C code must not see any.
template <typename Action>
bool guarded(Hdf5File::State& state, Action action) {
  if (state.error) return false;
  try {
    action();
    return true;
  } catch (...) {
    state.error = std::current_exception();
    return false;
  }
}

H5FD_t* driver_open(const char*, unsigned, hid_t access, haddr_t) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  if (info == nullptr) return nullptr;
  auto file = std::make_unique<DriverFile>();
  std::memset(file.get(), 0, sizeof(DriverFile));
  file->state = info->state;
  if (!guarded(*info->state, [&] { file->end_of_file = info->state->file->size(); }))
    return nullptr;
  return &file.release()->base;
}

herr_t driver_close(H5FD_t* file) {
  delete driver_file(file);
  return 0;
}

herr_t driver_query(const H5FD_t*, unsigned long* flags) {
  if (flags != nullptr)
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t driver_get_eoa(const H5FD_t* file, H5FD_mem_t) {
  return driver_file(file)->end_of_allocation;
}

herr_t driver_set_eoa(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  driver_file(file)->end_of_allocation = address;
  return 0;
}

haddr_t driver_get_eof(const H5FD_t* file, H5FD_mem_t) {
  return driver_file(file)->end_of_file;
}

herr_t driver_read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  DriverFile& driver = *driver_file(file);
  const bool read = guarded(*driver.state, [&] {
    const std::size_t count = driver.state->file->read_at(address, buffer, size);
    std::memset(static_cast<char*>(buffer) + count, 0, size - count);
  });
  return read ? 0 : -1;
}

herr_t driver_write(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size,
                    const void* buffer) {
  DriverFile& driver = *driver_file(file);
  guarded(*driver.state, [&] { driver.state->file->write_at(address, buffer, size); });
  driver.end_of_file = std::max(driver.end_of_file, address + size);
  return 0;
}

herr_t driver_truncate(H5FD_t* file, hid_t, hbool_t) {
  DriverFile& driver = *driver_file(file);
  if (driver.end_of_allocation == driver.end_of_file) return 0;
  guarded(*driver.state, [&] { driver.state->file->truncate(driver.end_of_allocation); });
  driver.end_of_file = driver.end_of_allocation;
  return 0;
}

H5FD_class_t make_driver_class() {
  H5FD_class_t driver;
  std::memset(&driver, 0, sizeof(driver));
#if H5_VERSION_GE(1, 13, 2)
  driver.version = H5FD_CLASS_VERSION;
#endif
#if H5_VERSION_GE(1, 13, 0)
  driver.value = static_cast<H5FD_class_value_t>(560);  // of the range left to applications
#endif
  driver.name = "chaski";
  driver.maxaddr = (haddr_t{1} << 62) - 1;
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.fapl_size = sizeof(DriverInfo);
  driver.open = driver_open;
  driver.close = driver_close;
  driver.query = driver_query;
  driver.get_eoa = driver_get_eoa;
  driver.set_eoa = driver_set_eoa;
  driver.get_eof = driver_get_eof;
  driver.read = driver_read;
  driver.write = driver_write;
  driver.truncate = driver_truncate;
  constexpr H5FD_mem_t kMap[] = H5FD_FLMAP_DICHOTOMY;
  std::memcpy(driver.fl_map, kMap, sizeof(kMap));
  return driver;
}

hid_t driver_id() {
  static const H5FD_class_t driver = make_driver_class();
  static const hid_t id = H5FDregister(&driver);
  return id;
}

Hdf5Handle access_list(Hdf5File::State* state) {
  // The library prints its errors unless told otherwise, thread by thread.
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  Hdf5Handle list(H5Pcreate(H5P_FILE_ACCESS));
  const DriverInfo info{state};
  H5Pset_driver(list.get(), driver_id(), &info);
  H5Pset_fclose_degree(list.get(), H5F_CLOSE_STRONG);
  // Formats of HDF5 1.8 and later: superblock, object headers, groups and attributes all carry
  // checksums, so that the library notices damage before it follows an address.
  H5Pset_libver_bounds(list.get(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  // Large tensors begin at a page, as memory maps and direct reads like it.
  H5Pset_alignment(list.get(), 65536, 4096);
  return list;
}

}  // namespace

Hdf5File Hdf5File::create(std::unique_ptr<File> file, const std::string& path) {
  Hdf5File result(std::make_unique<State>(State{std::move(file), nullptr}), path);
  const Hdf5Handle access = access_list(result.state_.get());
  const Hdf5Handle properties(H5Pcreate(H5P_FILE_CREATE));
  H5Pset_obj_track_times(properties.get(), 0);  // equal contents give equal files
  result.id_ = Hdf5Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, properties.get(), access.get()));
  result.check();
  if (!result.id_)
    throw std::runtime_error(fmt::format("{}: the HDF5 library cannot create the file", path));
  return result;
}

Hdf5File Hdf5File::open(std::unique_ptr<File> file, const std::string& path) {
  Hdf5File result(std::make_unique<State>(State{std::move(file), nullptr}), path);
  const Hdf5Handle access = access_list(result.state_.get());
  result.id_ = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()));
  result.check();
  if (!result.id_)
    throw std::runtime_error(
        fmt::format("{}: is no HDF5 file, or damaged\nhint: use an earlier checkpoint", path));
  return result;
}

void Hdf5File::check() const {
  if (state_->error) std::rethrow_exception(state_->error);
}

void Hdf5File::finish() {
  const bool closed = id_.close();
  check();
  if (!closed)
    throw std::runtime_error(fmt::format("{}: the HDF5 library cannot close the file", path_));
}

}  // namespace chaski
