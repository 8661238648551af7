#include "app/config/input_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <glob.h>
#include <stdexcept>
#include <system_error>
#include <unistd.h>

namespace chaski {
namespace {

[[noreturn]] void fail(const std::string& message, const std::string& hint) {
  throw std::invalid_argument(message + "\nhint: " + hint);
}

// A path as it is, or the sorted matches of a glob.
std::vector<std::string> expand(const std::string& key, const std::string& pattern) {
  std::error_code error;
  if (std::filesystem::exists(pattern, error)) return {pattern};
  if (pattern.find_first_of("*?[") == std::string::npos) {
    const std::string why = error ? error.message() : "no such file";
    fail(fmt::format("{} names {}: {}", key, pattern, why),
         "paths are relative to the folder in which the program is started");
  }
  glob_t matches{};
  const int status = glob(pattern.c_str(), GLOB_ERR, nullptr, &matches);
  std::vector<std::string> paths(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  globfree(&matches);
  if (status == GLOB_ABORTED) {
    fail(fmt::format("{} names {}: its folder cannot be read", key, pattern),
         "check the permissions of the folder");
  }
  if (paths.empty()) {
    fail(fmt::format("{} names {}, which matches no file", key, pattern),
         "paths are relative to the folder in which the program is started");
  }
  return paths;
}

}  // namespace

void check_input_file(const std::string& key, const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    fail(fmt::format("{} names {}, which is a folder", key, path),
         fmt::format("give its files, for example {}",
                     (std::filesystem::path(path) / "*.h5").string()));
  }
  if (access(path.c_str(), R_OK) != 0) {
    fail(fmt::format("{} names {}: {}", key, path, std::strerror(errno)),
         "check the path and its permissions");
  }
}

std::vector<std::string> resolve_input_files(const std::string& key,
                                             const std::vector<std::string>& patterns) {
  std::vector<std::string> paths;
  for (const std::string& pattern : patterns) {
    for (const std::string& path : expand(key, pattern)) {
      if (std::find(paths.begin(), paths.end(), path) != paths.end()) continue;
      check_input_file(key, path);
      paths.push_back(path);
    }
  }
  return paths;
}

}  // namespace chaski
