#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/fault/checkpoint/mutation.h"

namespace chaski {

// Damages what an HDF5 file says rather than its bytes, through the library itself, so that all of
// the library's checksums fit and its readers have to notice: attributes with other values or of
// other types, or missing; datasets of other types, shapes (enormous ones, too) and layouts, some
// in other files; links that are missing, soft, external or go round in circles; groups without
// end.
class Hdf5Vandal {
 public:
  explicit Hdf5Vandal(std::uint64_t seed) : bytes_(seed), random_(seed + 1) {}

  // Changes the file at `path` in one to three places.
  void change(const std::string& path);

 private:
  using Id = std::int64_t;  // hid_t

  std::uint64_t below(std::uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }
  std::int64_t extreme_number();
  void change_attribute(Id object);
  void overwrite_attribute(Id attribute);
  void replace_attribute(Id object, const std::string& name);
  void replace_dataset(Id file, const std::string& name);
  Id make_layout(int rank, const unsigned long long* dims);
  void change_link(Id file, const std::string& name);

  Mutator bytes_;
  std::mt19937_64 random_;
};

}  // namespace chaski
