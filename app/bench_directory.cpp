#include "app/bench_directory.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fmt/core.h>
#include <stdexcept>

namespace chaski {

BenchDirectory::BenchDirectory(const std::string& parent) {
  const std::string where =
      parent.empty() ? std::filesystem::temp_directory_path().string() : parent;
  if (!std::filesystem::is_directory(where)) {
    throw std::invalid_argument(fmt::format("--dir {}: must be an existing folder", where));
  }
  std::string name = where + "/chaski-bench-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) {
    throw std::runtime_error(
        fmt::format("{}: cannot create a folder in it: {}\nhint: --dir names another folder", where,
                    std::strerror(errno)));
  }
  path_ = name;
}

BenchDirectory::~BenchDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace chaski
