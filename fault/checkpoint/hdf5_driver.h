#pragma once

#define H5_USE_110_API  // later versions of the library keep these functions under their names
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "data/hdf5_handle.h"
#include "fault/checkpoint/file_system.h"

namespace chaski {

// An HDF5 file whose bytes go through a File: a virtual file driver of our own, so that saving is
// tested with the same lost writes, full disks and stops as everything else, and needs no memory
// beyond HDF5's metadata.
class Hdf5File {
 public:
  // Takes an empty file. Objects are written in formats that carry checksums of all metadata.
  static Hdf5File create(std::unique_ptr<File> file, const std::string& path);
  // Throws std::runtime_error naming `path` when it is no HDF5 file.
  static Hdf5File open(std::unique_ptr<File> file, const std::string& path);

  hid_t id() const { return id_.get(); }
  File& file() const { return *state_->file; }
  const std::string& path() const { return path_; }
  // Rethrows the first error of the file. HDF5 itself never sees a failed write: it can neither
  // close nor forget a file that it cannot write, and would try again when the program ends.
  void check() const;
  // Ends HDF5's use of the file, which stays open; throws as check() does.
  void finish();

  struct State {
    std::unique_ptr<File> file;
    std::exception_ptr error;
  };

 private:
  Hdf5File(std::unique_ptr<State> state, const std::string& path)
      : state_(std::move(state)), path_(path) {}

  std::unique_ptr<State> state_;
  std::string path_;
  Hdf5Handle id_;  // last: closing it still uses the others
};

}  // namespace chaski
