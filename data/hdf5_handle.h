#pragma once

#include <hdf5.h>
#include <utility>

namespace chaski {

// Owns an HDF5 id of any kind; negative where the call that made it failed.
class Hdf5Handle {
 public:
  Hdf5Handle() = default;
  explicit Hdf5Handle(hid_t id) : id_(id) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Hdf5Handle() { close(); }

  explicit operator bool() const { return id_ >= 0; }
  hid_t get() const { return id_; }

  // False when closing failed, which for a file means that it was not written.
  bool close() {
    const hid_t id = std::exchange(id_, -1);
    if (id < 0) return true;
    if (H5Iget_type(id) == H5I_FILE) return H5Fclose(id) >= 0;
    return H5Idec_ref(id) >= 0;
  }

 private:
  hid_t id_ = -1;
};

// Keeps HDF5 from printing its error stack while it lives: callers report in one line of their
// own. HDF5's setting is per process or per thread, depending on how it was built.
class QuietHdf5 {
 public:
  QuietHdf5() {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  QuietHdf5(const QuietHdf5&) = delete;
  QuietHdf5& operator=(const QuietHdf5&) = delete;
  ~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace chaski
